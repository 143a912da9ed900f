'use strict';

// The preload in real PM2s, under load: every request is counted, every order where it is executed.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const { test } = require('node:test');
const { PRELOAD } = require('./stage/app.js');
const { Client } = require('./stage/client.js');
const { Load } = require('./stage/load.js');
const { Pm2, freePort } = require('./stage/pm2.js');
const { sidecar } = require('./stage/sidecar.js');
const { until } = require('./stage/until.js');

const NEWEST = 'pm2';
// All of it on one Node; on the others, that the newest PM2 loses nothing.
const isWhole = process.versions.node.startsWith('20.') || process.env.HANDOFF_WHOLE === 'yes';
const PM2S = isWhole ? [NEWEST, 'pm2-6', 'pm2-5'] : [NEWEST];
const whole = { skip: !isWhole && 'tried on Node 20' };

const NAIVE = "require('node:http').createServer(serve).listen(process.env.PORT, '127.0.0.1');";
const GRACEFUL = `
  const server = require('node:http').createServer(serve);
  server.listen(process.env.PORT, '127.0.0.1', () => process.send('ready'));
  process.on('SIGINT', () => { server.close(() => process.exit(0)); setTimeout(() => process.exit(1), 1200); });`;
const EXITS = `${NAIVE} process.on('SIGINT', () => process.exit(0));`;
// The app does not say `ready`.
const FORK = { exec_mode: 'fork', instances: 2, increment_var: 'PORT', wait_ready: true, listen_timeout: 3000 };
const CLUSTER = { exec_mode: 'cluster', instances: 2 };

async function serving(port) {
  const client = new Client(port);
  await until(`somebody serves on ${port}`, async () => (await client.ask('/')).status === 200);
  client.end();
}

// A response that goes on until the visitor leaves.
function streamOf(port) {
  const request = http.get({ host: '127.0.0.1', port, path: '/stream', agent: false });
  const begun = new Promise((done) => {
    request.on('response', (response) => response.once('data', (pid) => done({ pid })));
  });
  request.on('error', () => {});
  return { next: () => begun, end: () => request.destroy() };
}

async function cluster(t, version, source, { env, ...settings } = {}) {
  const pm2 = new Pm2(t, version);
  const port = await freePort();
  await pm2.start(source, { ...CLUSTER, ...settings, env: { PORT: port, ...env } });
  await serving(port);
  return { pm2, port, load: new Load([port]) };
}

const REPLACEMENTS = {
  'pm2 reload': (pm2) => pm2.run('reload', 'shop'),
  'pm2 restart': (pm2) => pm2.run('restart', 'shop'),
  'kill -INT of a worker': async (pm2) => {
    const pid = await pm2.busy();
    process.kill(pid, 'SIGINT');
    await until('PM2 has replaced it', async () => !(await pm2.pids()).includes(pid));
  },
};

async function loses(nothing, { pm2, load }, replace) {
  await load.some();
  // A worker may be between two orders when it is stopped: a control goes on until it meets one.
  let times = nothing ? 1 : 10;
  do {
    await replace(pm2);
    await load.some();
    times -= 1;
  } while (times > 0 && load.failedThoughExecuted(pm2).length === 0);
  await load.end();
  const [failed, executed] = [load.failed, load.failedThoughExecuted(pm2)];
  const report = JSON.stringify({ of: load.answers.length, failed, executed });
  if (nothing) assert.deepEqual(failed, [], report);
  else assert.ok(executed.length > 0, report);
}

for (const version of PM2S) {
  test(`${version}, cluster: an app without handlers loses no request`, async (t) => {
    const started = await cluster(t, version, NAIVE);
    const all = async (pm2) => {
      for (const replace of Object.values(REPLACEMENTS)) {
        await replace(pm2);
        await started.load.some(50);
      }
    };
    await loses(true, started, all);
    // A stop leaves nobody to serve; what was executed is answered.
    const load = new Load([started.port]);
    await load.some();
    await started.pm2.run('stop', 'shop');
    await load.end();
    assert.deepEqual(load.failedThoughExecuted(started.pm2), []);
    assert.ok(!started.pm2.log.includes('SIGKILL'), started.pm2.log);
  });

  test(`${version}, fork: an app without handlers loses no request when nginx is told`, async (t) => {
    await loses(true, await forked(t, version, NAIVE), REPLACEMENTS['pm2 reload']);
  });
}

for (const name of Object.keys(REPLACEMENTS)) {
  test(`control: without the preload, ${name} loses what was executed`, whole, async (t) => {
    await loses(false, await cluster(t, NEWEST, NAIVE, { preload: false }), REPLACEMENTS[name]);
  });
}

test('control: without the preload, telling nginx too late loses what was executed', whole, async (t) => {
  await loses(false, await forked(t, NEWEST, NAIVE, { preload: false }), REPLACEMENTS['pm2 reload']);
});

for (const [name, source] of Object.entries({ 'closes its server': GRACEFUL, 'exits at once': EXITS })) {
  test(`cluster: an app that ${name} loses no request`, whole, async (t) => {
    await loses(true, await cluster(t, NEWEST, source), REPLACEMENTS['pm2 reload']);
  });
}

test('control: without the preload, an app that exits at once loses what was executed', whole, async (t) => {
  await loses(false, await cluster(t, NEWEST, EXITS, { preload: false }), REPLACEMENTS['pm2 reload']);
});

test('cluster: Express, SIGTERM and treekill off lose nothing either', whole, async (t) => {
  const source = `const app = require('express')(); app.use(serve); app.listen(process.env.PORT, '127.0.0.1');`;
  const started = await cluster(t, NEWEST, source, { treekill: false });
  await loses(true, started, async (pm2) => {
    await pm2.run('reload', 'shop');
    const [first] = await pm2.pids();
    process.kill(first, 'SIGTERM');
    await until('PM2 has replaced it', async () => !(await pm2.pids()).includes(first));
  });
});

test('cluster: shutdown_with_message', whole, async (t) => {
  const source = `${NAIVE} process.on('message', (word) => { if (word === 'shutdown') process.exit(0); });`;
  await loses(true, await cluster(t, NEWEST, source, { shutdown_with_message: true }), REPLACEMENTS['pm2 restart']);
});

test('cluster: ready is said, once more does no harm', whole, async (t) => {
  const patience = { wait_ready: true, listen_timeout: 20_000 };
  const twice = `${NAIVE} setTimeout(() => process.send('ready'), 500); setTimeout(() => process.send('ready'), 600);`;
  for (const source of [NAIVE, twice]) {
    const started = await cluster(t, NEWEST, source, patience);
    const since = performance.now();
    await loses(true, started, REPLACEMENTS['pm2 reload']);
    assert.ok(performance.now() - since < 15_000);
  }
});

test('npm start passes the signal on, and a request is finished', whole, async (t) => {
  const pm2 = new Pm2(t, NEWEST);
  const port = await freePort();
  fs.writeFileSync(path.join(pm2.home, 'package.json'), JSON.stringify({ scripts: { start: 'node app.js' } }));
  // npm's grandchild is the one that listens.
  const env = { PORT: port, NODE_OPTIONS: `--require ${PRELOAD}` };
  await pm2.start(NAIVE, { script: 'npm', args: 'start', node_args: [], env });
  await serving(port);
  const answer = new Client(port).ask('/orders?id=one', 'POST');
  await until('it is executed', () => pm2.executed('start').length === 1);
  await pm2.run('stop', 'shop');
  assert.equal((await answer).status, 200);
});

test('an app with a cluster of its own, in fork mode, answers what it has', whole, async (t) => {
  const pm2 = new Pm2(t, NEWEST);
  const port = await freePort();
  const source = `const cluster = require('node:cluster');
    if (cluster.isPrimary) for (let n = 0; n < 2; n += 1) cluster.fork();
    else ${NAIVE}`;
  await pm2.start(source, { env: { PORT: port } });
  await serving(port);
  const load = new Load([port]);
  await load.some();
  await pm2.run('stop', 'shop');
  await load.end();
  assert.deepEqual(load.failedThoughExecuted(pm2), []);
});

test('cluster: a worker that is drained gets nothing new, and keeps a stream as long as it lasts', whole, async (t) => {
  const workers = new Map();
  const side = await sidecar(t, {
    hello: ({ pid }, answer) => workers.set(pid, { answer, n: null }),
    in_flight: ({ n }, _answer, socket) => (socket.n = n),
    stopping: (_message, answer) => answer({ type: 'ack' }),
  });
  const { pm2, port, load } = await cluster(t, NEWEST, NAIVE, { env: { HANDOFF_PRELOAD_SOCKET: side.path } });
  const stream = streamOf(port);
  const pid = Number((await stream.next()).pid);
  await until('both workers are there', () => workers.has(pid) && workers.size === 2);
  await load.some();
  workers.get(pid).answer({ type: 'drain', deadline_ms: 60_000 });
  await until('the stream is all that it has', () => [...side.sockets].some(({ n }) => n === 1));
  const begun = load.answers.length;
  await load.some();
  const after = load.answers.slice(begun + 8).filter(({ body }) => body === String(pid));
  assert.deepEqual(after, []);
  stream.end();
  await until('nothing is in flight', () => [...side.sockets].some(({ n }) => n === 0));
  process.kill(pid, 'SIGINT');
  await until('PM2 has replaced it', async () => !(await pm2.pids()).includes(pid));
  await load.end();
  assert.deepEqual(load.failed, []);
});

test('cluster, wait_ready: a worker that is stopped leaves the address at once', whole, async (t) => {
  const settings = { wait_ready: true, listen_timeout: 3000, kill_timeout: 8000 };
  const { pm2, port, load } = await cluster(t, NEWEST, NAIVE, settings);
  const stream = streamOf(port);
  const pid = Number((await stream.next()).pid);
  await load.some();
  process.kill(pid, 'SIGINT');
  await load.some();
  const begun = load.answers.length;
  await load.some();
  assert.deepEqual(load.answers.slice(begun).filter(({ body }) => body === String(pid)), []);
  assert.ok((await pm2.pids()).includes(pid));
  stream.end();
  await until('PM2 has replaced it', async () => !(await pm2.pids()).includes(pid));
  await load.end();
  assert.deepEqual(load.failed, []);
});

// Two workers on ports of their own; the visitors obey the sidecar, as nginx does.
async function forked(t, version, source, settings) {
  const pm2 = new Pm2(t, version);
  const port = await freePort();
  const ports = [port, port + 1];
  const up = new Set(ports);
  const portOf = new WeakMap();
  const side = await sidecar(t, {
    hello(message, _answer, socket) {
      const [at] = message.listens;
      portOf.set(socket, at.port);
      up.add(at.port);
    },
    stopping(_message, answer, socket) {
      up.delete(portOf.get(socket));
      answer({ type: 'ack' });
    },
  });
  const env = { PORT: String(port), HANDOFF_PRELOAD_SOCKET: side.path };
  await pm2.start(source, { ...FORK, env, ...settings });
  for (const one of ports) await serving(one);
  return { pm2, load: new Load(ports, () => [...up]) };
}
