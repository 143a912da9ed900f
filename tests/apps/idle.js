'use strict';

// A worker of an app in cluster mode that ends idle connections, and writes down what it executed.
//
// PORT, ORDERS   as ever: each POST leaves its path there when it is executed, a line each.
// IDLE           keepAliveTimeout in milliseconds; without it, Node's own.
//
// …/hold?<until>  is answered at that time of CLOCK_MONOTONIC, in nanoseconds; all else at once.

const fs = require('node:fs');
const http = require('node:http');

const { PORT, ORDERS, IDLE } = process.env;
const orders = fs.openSync(ORDERS, 'a');

const server = http.createServer((request, response) => {
  const [path, until] = request.url.split('?');
  if (request.method === 'POST') fs.writeSync(orders, `${path}\n`);
  const answer = () => response.end('done\n');
  const wait = until ? (Number(until) - Number(process.hrtime.bigint())) / 1e6 : 0;
  request.resume().on('end', () => (wait > 0 ? setTimeout(answer, wait) : answer()));
});
if (IDLE) server.keepAliveTimeout = Number(IDLE);
server.listen(Number(PORT), '127.0.0.1', () => process.send?.('ready'));
