'use strict';

// Many backends in one process, without a package: what a test needs to see from behind nginx.
//
//   node farm.js '{"peers": ["127.0.0.1:3000", "[::1]:3000", "unix:/a.sock"], "control": "/c.sock", "slow": 20, "idle": 0, "tls": {"key", "cert"}}'
//
// A peer has the name by which nginx knows it. It answers every request at once, but
//   …/hold  when it is told so (POST /release),
//   …/slow  after `slow` milliseconds,
//   X-Die: <peers>      breaks the connection, if it is one of them,
//   X-Refuse: <peers>   says 503, if it is one of them,
//   X-Status: <status>  and that it says instead,
//   X-Later: <time>     with this as its Retry-After,
//   X-Times: <number>   but does so, or dies, only the first times that the path arrives at any of them,
//   X-Size: <bytes>     is that long.
// With `idle`, in milliseconds, it is the keepAliveTimeout of each peer; else peers do not close idle connections: whoever does,
// it is nginx.
//
// The control socket: GET /arrivals?<after so many>, GET /connections, GET /open, GET /held;
// POST /release, POST /break?<peer>, POST /stop?<peer>, POST /start?<peer>.
// Times are CLOCK_MONOTONIC in nanoseconds, the clock of the stage. The process ends with its standard input.

const fs = require('node:fs');
const http = require('node:http');
const https = require('node:https');

const { peers, control, slow, idle, tls } = JSON.parse(process.argv[2]);

const arrivals = [];
const servers = new Map();
const open = new Map(peers.map((peer) => [peer, new Set()]));
let held = [];
let connections = 0;

const now = () => Number(process.hrtime.bigint());
const named = (list, peer) => list !== undefined && list.split(',').some((name) => name === peer || name === '*');

function serve(peer, request, response) {
  // A header as small as ours arrives with its first byte.
  const arrival = {
    peer,
    connection: request.socket.number,
    port: request.socket.remotePort ?? null,
    resumed: request.socket.isSessionReused?.() ?? false,
    path: request.url,
    at: now(),
    answered: null,
  };
  arrivals.push(arrival);
  const { 'x-die': die, 'x-refuse': refuse, 'x-status': status, 'x-later': later, 'x-times': times } = request.headers;
  const fails = times === undefined || arrivals.filter(({ path }) => path === request.url).length <= Number(times);
  if (fails && named(die, peer)) return request.socket.destroy();
  const answer = () => {
    arrival.answered = now();
    const refuses = fails && named(refuse, peer);
    response.writeHead(refuses ? Number(status ?? 503) : 200, {
      'X-Peer': peer,
      'X-Connection': arrival.connection,
      ...(refuses && later !== undefined && { 'Retry-After': later }),
    });
    response.end(`${peer}\n`.padEnd(Number(request.headers['x-size'] ?? 0)));
  };
  request.resume().on('end', () => {
    const path = request.url.split('?')[0];
    if (path.endsWith('/hold')) held.push({ peer, answer });
    else if (path.endsWith('/slow')) setTimeout(answer, slow);
    else answer();
  });
}

function start(peer) {
  const options = { keepAliveTimeout: idle, requestTimeout: 0, headersTimeout: 0 };
  const listener = (request, response) => serve(peer, request, response);
  const server = tls ? https.createServer({ ...options, ...tls }, listener) : http.createServer(options, listener);
  server.on(tls ? 'secureConnection' : 'connection', (socket) => {
    connections += 1;
    socket.number = connections;
    open.get(peer).add(socket);
    socket.on('close', () => open.get(peer).delete(socket));
  });
  servers.set(peer, server);
  return listen(server, place(peer));
}

// The youngest connection first, as nginx's cache has them. A worker that is killed closes them, and so does this, unless it is
// to reset them.
function disconnect(peer, resets = false) {
  for (const socket of [...open.get(peer)].reverse()) {
    if (resets && !peer.startsWith('unix:')) socket.resetAndDestroy();
    else socket.destroy();
  }
}

function stop(peer) {
  disconnect(peer);
  return new Promise((closed) => servers.get(peer).close(closed));
}

function place(peer) {
  if (peer.startsWith('unix:')) {
    const path = peer.slice('unix:'.length);
    // An earlier farm may have been killed.
    fs.rmSync(path, { force: true });
    return { path, writableAll: true };
  }
  const colon = peer.lastIndexOf(':');
  return { host: peer.slice(0, colon).replace(/[[\]]/g, ''), port: Number(peer.slice(colon + 1)) };
}

function listen(server, place) {
  return new Promise((listening, failed) => server.on('error', failed).listen(place, listening));
}

const CALLS = {
  'GET /arrivals': (after) => arrivals.slice(after),
  'GET /connections': () => connections,
  'GET /held': () => held.map(({ peer }) => peer),
  'GET /open': () => Object.fromEntries(peers.map((peer) => [peer, [...open.get(peer)].map((socket) => socket.number)])),
  'POST /break': (peer) => disconnect(peer, true),
  'POST /release': () => held.splice(0).forEach(({ answer }) => answer()),
  'POST /start': start,
  'POST /stop': stop,
};

const controller = http.createServer(async (request, response) => {
  const [path, argument] = request.url.split('?');
  const call = CALLS[`${request.method} ${path}`];
  if (!call) return response.writeHead(404).end();
  const answer = await call(argument);
  response.end(JSON.stringify(answer ?? null));
});

process.stdin.resume().on('end', () => process.exit());
Promise.all([...peers.map(start), listen(controller, { path: control })]).then(() => fs.writeSync(1, 'ready\n'));
