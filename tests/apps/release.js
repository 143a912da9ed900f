'use strict';

// A small application without a package, as good or as broken as the release that is deployed.
//
// RELEASE  a file, read at boot: what this release is like, words separated by commas.
//            good     listens, says `ready`, serves
//            crash    throws 200 ms after it starts, before it listens
//            late     listens, says `ready`, throws 300 ms later
//            deaf     says `ready` and never listens
//            mute     listens and never says `ready`
//            ill      /health answers 503
//            errors   /health is well; all else answers 500
//            slow N   listens N ms later
//            pale N   /health answers 503 for N ms
//            weary N  needs N ms more to end
//            needs X  throws unless X is in its environment
//            lazy N   every answer but that of /health comes N ms later
//            frail    as soon as the file TROUBLE is there, it is also what that says: errors, lazy N
//            only N   is all this in instance N alone; the others are good
// STYLE    graceful (default): says `ready`, and on SIGINT or SIGTERM closes its server before it ends.
//          naive: says nothing, handles no signal.
// ORDERS   every order leaves a line here when its execution starts and one when it is done.
//
// Without PORT it is a worker that listens nowhere. Times are CLOCK_MONOTONIC in nanoseconds, the clock of the stage.

const fs = require('node:fs');
const http = require('node:http');
const { text } = require('node:stream/consumers');
const { setTimeout: sleep } = require('node:timers/promises');

const { PORT: port, STYLE: style, ORDERS: file, TROUBLE: trouble, NODE_APP_INSTANCE: instance } = process.env;
const booted = Date.now();
const read = (file) => fs.readFileSync(file, 'utf8').trim().split(/,\s*/).map((word) => word.split(' '));
const numbered = (words) => new Map(words.map(([name, number]) => [name, Number(number ?? 0)]));
const words = read(process.env.RELEASE);
const all = numbered(words);
const release = all.has('only') && all.get('only') !== Number(instance) ? new Map() : all;
const needed = words.filter(([name]) => name === 'needs').map(([, variable]) => variable);

const ORDER_WORK = 50;
const FORCED_EXIT = 7000;

const orders = fs.openSync(file, 'a');
const order = (what, id) => fs.writeSync(orders, `${what} ${id} ${process.pid} ${process.hrtime.bigint()}\n`);

const pages = {
  'GET /fast': async () => ({ ok: true }),
  'GET /env': async (_, query) => ({ value: process.env[query.get('name')] ?? null }),
  'GET /slow': async (_, query) => {
    await sleep(Number(query.get('ms')));
    return { ok: true };
  },
  'POST /orders': async (request, query) => {
    const { id } = JSON.parse(await text(request));
    order('start', id);
    await sleep(Number(query.get('ms') ?? ORDER_WORK));
    order('done', id);
    return { id };
  },
};

function health() {
  return release.has('ill') || Date.now() - booted < (release.get('pale') ?? 0) ? 503 : 200;
}

async function answer(request) {
  const { pathname, searchParams } = new URL(request.url, 'http://localhost');
  if (pathname === '/health') return [health(), {}];
  const now = release.has('frail') && fs.existsSync(trouble) ? new Map([...release, ...numbered(read(trouble))]) : release;
  if (now.has('lazy')) await sleep(now.get('lazy'));
  if (now.has('errors')) return [500, { error: 'this release answers with errors' }];
  const page = pages[`${request.method} ${pathname}`];
  return page ? [200, await page(request, searchParams)] : [404, {}];
}

const server = http.createServer(async (request, response) => {
  const [status, body] = await answer(request);
  response.writeHead(status, { 'Content-Type': 'application/json', 'X-Worker-PID': process.pid });
  response.end(JSON.stringify(body));
});

function fail(when) {
  console.error(`connecting to the database ${when}`);
  throw new Error('this release is broken');
}

function ready() {
  if (style !== 'naive' && !release.has('mute')) process.send?.('ready');
  if (release.has('late')) setTimeout(fail, 300, 'of yesterday');
}

function close() {
  const end = () => setTimeout(() => process.exit(0), release.get('weary') ?? 0);
  server.listening ? server.close(end) : end();
  setTimeout(() => process.exit(1), FORCED_EXIT);
}

function start() {
  if (port !== undefined && !release.has('deaf')) return server.listen(Number(port), '127.0.0.1', ready);
  setInterval(() => {}, 1000);
  ready();
}

for (const name of needed) if (!(name in process.env)) throw new Error(`${name} is not set`);
if (style !== 'naive') ['SIGINT', 'SIGTERM'].forEach((signal) => process.once(signal, close));
if (release.has('crash')) setTimeout(fail, 200, 'that is not there');
else setTimeout(start, release.get('slow') ?? 0);
