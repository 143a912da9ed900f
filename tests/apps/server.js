'use strict';

// The sample application: a small, ordinary Express server, as a team would run it under PM2.
//
// BEHAVIOUR  graceful (default): warms up, says `ready`, and on SIGINT or SIGTERM closes its server before it exits.
//            naive: warms up, says nothing, handles no signal.
//            throws: as graceful, but worker 0 throws 200 ms after it listens, as long as CRASH_FILE exists.
// ORDERS     every order leaves a line here when its execution starts and one when it is done.
// LIVES      every worker leaves a line here when it boots, listens and begins to close.
// HOST       where it listens: 127.0.0.1 unless it is told another, in a container 0.0.0.0.
//
// Times are CLOCK_MONOTONIC in nanoseconds, the clock of the stage.

const fs = require('node:fs');
const http = require('node:http');
const { setTimeout: sleep } = require('node:timers/promises');
const express = require('express');
const { WebSocketServer } = require('ws');

const host = process.env.HOST ?? '127.0.0.1';
const port = Number(process.env.PORT ?? 3000);
const instance = Number(process.env.NODE_APP_INSTANCE ?? 0);
const behaviour = process.env.BEHAVIOUR ?? 'graceful';

const WARM_UP = { from: 300, to: 800 };
const FORCED_EXIT = 7000;
const ORDER_WORK = 50;
const STREAM = { events: 50, every: 200 };

const orders = journal(process.env.ORDERS);
const lives = journal(process.env.LIVES);

// A file to which many processes append whole lines.
function journal(path) {
  if (!path) return () => {};
  const file = fs.openSync(path, 'a');
  return (...words) => fs.writeSync(file, `${words.join(' ')} ${process.pid} ${process.hrtime.bigint()}\n`);
}

const app = express();
app.disable('x-powered-by');
app.use((_request, response, next) => {
  response.set('X-Worker-PID', String(process.pid));
  next();
});

app.get('/health', (_request, response) => response.json({ ok: true, pid: process.pid }));
app.get('/fast', (_request, response) => response.json({ ok: true }));

app.get('/slow', async (request, response) => {
  await sleep(Number(request.query.ms ?? 300));
  response.json({ ok: true });
});

app.post('/orders', express.json(), async (request, response) => {
  const { id } = request.body;
  orders('start', id);
  await sleep(ORDER_WORK);
  orders('done', id);
  response.status(201).json({ id });
});

app.get('/stream', (request, response) => {
  const events = Number(request.query.events ?? STREAM.events);
  response.set({ 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache', 'X-Accel-Buffering': 'no' });
  let sent = 0;
  const timer = setInterval(() => {
    sent += 1;
    response.write(`id: ${sent}\ndata: ${process.pid}\n\n`);
    if (sent === events) response.end();
  }, STREAM.every);
  response.on('close', () => clearInterval(timer));
});

const server = http.createServer(app);
const sockets = new WebSocketServer({ server, path: '/echo' });
sockets.on('headers', (headers) => headers.push(`X-Worker-PID: ${process.pid}`));
sockets.on('connection', (socket) => socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary })));

async function start() {
  lives('boot', port, instance);
  await sleep(WARM_UP.from + Math.random() * (WARM_UP.to - WARM_UP.from));
  server.listen(port, host, () => {
    lives('listen', port, instance);
    if (behaviour !== 'naive') process.send?.('ready');
    if (behaviour === 'throws' && instance === 0) setTimeout(crash, 200);
  });
  if (behaviour !== 'naive') {
    process.once('SIGINT', close);
    process.once('SIGTERM', close);
  }
}

function close() {
  lives('close', port, instance);
  server.close(() => process.exit(0));
  setTimeout(() => process.exit(1), FORCED_EXIT);
}

function crash() {
  if (fs.existsSync(process.env.CRASH_FILE)) throw new Error('this worker throws 200 ms after it listens');
  setTimeout(crash, 20);
}

start();
