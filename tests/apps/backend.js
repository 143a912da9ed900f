'use strict';

// A backend that does what a test tells it:   node backend.js PORT…
//
// Every port is a peer. What is held on any of them is held until somebody asks for /release.

const http = require('node:http');

const held = new Set();

function hold(response, answer) {
  held.add(answer);
  response.on('close', () => held.delete(answer));
}

function answer(request, response) {
  const port = request.socket.localPort;
  const [, what, argument, option] = request.url.split(/[/?]/);
  request.resume();
  switch (what) {
    // With a status of its own, if one is named.
    case 'hold':
      if (argument) response.statusCode = Number(argument);
      return hold(response, () => response.end(`${port}\n`));
    case 'stream':
      response.write('first\n');
      return hold(response, () => response.end('last\n'));
    case 'held':
      return response.end(String(held.size));
    case 'release':
      for (const answer of held) answer();
      return response.end();
    case 'status':
      response.statusCode = Number(argument);
      return response.end(`${port}\n`);
    // Hangs up on the port that is named; all others serve, or hold if they are asked to.
    case 'hangup':
      if (Number(argument) === port) return request.socket.destroy();
      return option === 'hold' ? hold(response, () => response.end(`${port}\n`)) : response.end(`${port}\n`);
    default:
      response.setHeader('Cache-Control', 'max-age=60');
      return response.end(`${port}\n`);
  }
}

for (const port of process.argv.slice(2)) {
  const server = http.createServer(answer);
  server.keepAliveTimeout = 60_000;
  // As much of a WebSocket as a proxy sees: a handshake, and then bytes both ways.
  server.on('upgrade', (_request, socket) => {
    socket.on('error', () => {});
    socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n');
    socket.pipe(socket);
  });
  server.listen(Number(port), '127.0.0.1');
}
