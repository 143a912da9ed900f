'use strict';

// What is said between the preload and the sidecar, and how long it takes.

const assert = require('node:assert/strict');
const net = require('node:net');
const { test } = require('node:test');
const { setTimeout: sleep } = require('node:timers/promises');
const { App, NAIVE, start } = require('./stage/app.js');
const { Client } = require('./stage/client.js');
const { sidecar } = require('./stage/sidecar.js');
const { until } = require('./stage/until.js');

const HANDLED = `${NAIVE} process.on('SIGINT', () => say('signal'));`;

// An acknowledgement would be waited for this long: a quarter of kill_timeout, and half a second at most.
const NEVER = {};
const told = (side, more) => ({ env: { HANDOFF_PRELOAD_SOCKET: side.path, ...more } });

test('the sidecar hears who listens where, and who stops', async (t) => {
  const side = await sidecar(t);
  const app = await start(t, HANDLED, told(side, { SECRET: 'of the app' }));
  await side.hears('hello');
  app.kill('SIGINT');
  await side.hears('stopping');
  const listens = [{ address: '127.0.0.1', port: app.port }];
  assert.deepEqual(side.heard.slice(0, 2), [
    { type: 'hello', v: 1, pid: app.child.pid, pm_id: '7', mode: 'fork', listens },
    { type: 'stopping', signal: 'SIGINT', in_flight: 0, wait_ms: 400 },
  ]);
  assert.ok(!JSON.stringify(side.heard).includes('of the app'));
});

test('handlers run when the sidecar has answered, and until then requests are taken', async (t) => {
  const side = await sidecar(t, NEVER);
  const app = await start(t, HANDLED, told(side, { kill_timeout: '8000' }));
  await side.hears('hello');
  app.kill('SIGINT');
  await side.hears('stopping');
  assert.equal((await new Client(app.port).ask('/')).status, 200);
  await sleep(100);
  assert.ok(!app.words.includes('signal'));
  side.say({ type: 'ack' });
  await app.says('signal');
});

test('after the answer idle connections are closed soon', async (t) => {
  const side = await sidecar(t);
  const app = await start(t, NAIVE, told(side));
  await side.hears('hello');
  const client = new Client(app.port);
  await client.ask('/');
  app.kill('SIGINT');
  assert.equal(await app.ends(), 'SIGINT');
  assert.ok(app.lasted < 300, `${app.lasted} ms`);
  await side.hears('done');
});

for (const [timeout, most] of [[undefined, 400], ['8000', 500], ['1000', 250]]) {
  test(`a sidecar that does not answer costs ${most} ms (kill_timeout ${timeout})`, async (t) => {
    const side = await sidecar(t, NEVER);
    const app = await start(t, HANDLED, told(side, timeout && { kill_timeout: timeout }));
    await side.hears('hello');
    app.kill('SIGINT');
    await app.says('signal');
    const lasted = performance.now() - app.killed;
    assert.ok(lasted >= most - 10 && lasted < most + 150, `${lasted} ms`);
  });
}

test('one that cannot tell nginx says so, and is not waited for', async (t) => {
  const side = await sidecar(t, { stopping: (_message, answer) => answer({ type: 'nack' }) });
  const app = await start(t, HANDLED, told(side, { kill_timeout: '8000' }));
  await side.hears('hello');
  app.kill('SIGINT');
  await app.says('signal');
  assert.ok(performance.now() - app.killed < 200);
});

test('one that asks for more time gets it, half of kill_timeout at most, and requests are taken', async (t) => {
  const side = await sidecar(t, { stopping: (_message, answer) => answer({ type: 'wait', ms: 60_000 }) });
  const app = await start(t, HANDLED, told(side, { kill_timeout: '2400' }));
  await side.hears('hello');
  app.kill('SIGINT');
  await side.hears('stopping');
  await sleep(800);
  assert.ok(!app.words.includes('signal'));
  assert.equal((await new Client(app.port).ask('/')).status, 200);
  await app.says('signal');
  const lasted = performance.now() - app.killed;
  assert.ok(lasted >= 1190 && lasted < 1500, `${lasted} ms`);
});

// What came meanwhile waits with the kernel, and the moment until which the sidecar was to be waited for is past.
test('one that was stopped (SIGSTOP) takes what came meanwhile before it goes', async (t) => {
  const side = await sidecar(t, { stopping: (_message, answer) => answer({ type: 'wait', ms: 400 }) });
  const app = await start(t, NAIVE, told(side, { kill_timeout: '8000' }));
  await side.hears('hello');
  app.kill('SIGINT');
  await side.hears('stopping');
  app.child.kill('SIGSTOP');
  const answers = Promise.all(Array.from({ length: 64 }, () => new Client(app.port).ask('/', 'POST')));
  await sleep(800);
  app.child.kill('SIGCONT');
  assert.deepEqual((await answers).filter(({ status }) => status !== 200), []);
  assert.equal(await app.ends(), 'SIGINT');
});

// Whatever was to be waited for is past when it goes on, and it has read nothing yet of what nginx had sent before it knew.
for (const pause of [0, 20]) {
  test(`one that is stopped (SIGSTOP) ${pause} ms after the answer serves what had come before it goes`, async (t) => {
    const side = await sidecar(t);
    const app = await start(t, NAIVE, told(side, { kill_timeout: '8000' }));
    await side.hears('hello');
    const idle = await Promise.all(Array.from({ length: 8 }, async () => {
      const client = new Client(app.port);
      await client.ask('/');
      return client;
    }));
    app.kill('SIGINT');
    await side.hears('stopping');
    await sleep(pause);
    app.child.kill('SIGSTOP');
    const fresh = Array.from({ length: 64 }, () => new Client(app.port));
    const answers = Promise.allSettled([...idle, ...fresh].map((client) => client.ask('/', 'POST')));
    await sleep(1500);
    app.child.kill('SIGCONT');
    assert.deepEqual((await answers).filter(({ value }) => value?.status !== 200), []);
    assert.equal(await app.ends(), 'SIGINT');
  });
}

test('the answer ends the longer time, too, as does a second signal', async (t) => {
  const side = await sidecar(t, { stopping: (_message, answer) => answer({ type: 'wait', ms: 60_000 }) });
  const first = await start(t, HANDLED, told(side, { kill_timeout: '60000' }));
  await side.hears('hello');
  first.kill('SIGINT');
  await side.hears('stopping');
  side.say({ type: 'ack' });
  await first.says('signal');
  const second = await start(t, HANDLED, told(side, { kill_timeout: '60000' }));
  await until('it says hello', () => side.of('hello').length === 2);
  second.kill('SIGINT');
  await until('it says goodbye', () => side.of('stopping').length === 2);
  await sleep(600);
  assert.ok(!second.words.includes('signal'));
  second.kill('SIGINT');
  await second.says('signal');
});

test('a sidecar that is not there costs nothing', async (t) => {
  const app = await start(t, HANDLED);
  app.kill('SIGINT');
  await app.says('signal');
  assert.ok(performance.now() - app.killed < 100);
});

const BAD_PLACES = [['a directory', '/'], ['far too long', `/tmp/${'x'.repeat(5000)}`], ['a file', __filename]];

for (const [what, path] of BAD_PLACES) {
  test(`a socket that is ${what} harms nobody`, async (t) => {
    const app = await start(t, HANDLED, { env: { HANDOFF_PRELOAD_SOCKET: path } });
    await new Client(app.port).ask('/');
    app.kill('SIGINT');
    await app.says('signal');
    assert.ok(performance.now() - app.killed < 100);
    assert.equal(app.output, '');
  });
}

test('a sidecar that goes away while it is waited for is not waited for', async (t) => {
  const side = await sidecar(t, { stopping: (_message, _answer, socket) => socket.destroy() });
  const app = await start(t, HANDLED, told(side, { kill_timeout: '8000' }));
  await side.hears('hello');
  app.kill('SIGINT');
  await app.says('signal');
  assert.ok(performance.now() - app.killed < 200);
});

test('a sidecar that comes later is found', async (t) => {
  const side = await sidecar(t);
  side.server.close();
  const app = await start(t, NAIVE, told(side));
  await side.listen();
  await side.hears('hello');
  for (const socket of side.sockets) socket.destroy();
  await until('it is found again', () => side.of('hello').length === 2);
  app.kill('SIGINT');
  assert.equal(await app.ends(), 'SIGINT');
});

test('one that comes between the tries is found when it is needed', async (t) => {
  const side = await sidecar(t);
  side.server.close();
  const app = await start(t, HANDLED, told(side));
  await sleep(100);
  await side.listen();
  app.kill('SIGINT');
  await app.says('signal');
  assert.deepEqual(side.heard.map(({ type }) => type).slice(0, 2), ['hello', 'stopping']);
});

test('garbage is ignored, and a line without an end is not kept', async (t) => {
  const side = await sidecar(t);
  const app = await start(t, NAIVE, told(side));
  await side.hears('hello');
  const [socket] = side.sockets;
  socket.write('garbage\n{"type":"sing"}\n[]\nnull\n{"type":"drain"}\n{"type":"drain","deadline_ms":"x"}\n');
  socket.write('x'.repeat(10_000));
  await until('it is hung up on', () => socket.destroyed || socket.readableEnded);
  assert.equal((await new Client(app.port).ask('/')).connection, 'keep-alive');
  assert.equal(app.output, '');
});

// As much of a WebSocket as is needed: a handshake, and then bytes both ways.
const STREAMS = `
  http.createServer(serve).on('upgrade', (_request, socket) => {
    socket.write('HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n\\r\\n');
    socket.pipe(socket);
  }).listen(0, '127.0.0.1', listening);
`;

test('drain counts to zero, server-sent events and WebSockets too', async (t) => {
  const side = await sidecar(t);
  const app = await start(t, STREAMS, told(side));
  const stream = new Client(app.port).ask('/stream');
  await app.says('held');
  const upgraded = net.connect(app.port, '127.0.0.1');
  upgraded.write('GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n');
  await new Promise((begun) => upgraded.once('data', begun));
  await side.hears('hello');

  side.say({ type: 'drain', deadline_ms: 10_000 });
  await side.hears('in_flight', ({ n }) => n === 2);
  assert.equal((await new Client(app.port).ask('/')).connection, 'close');
  upgraded.write('still there');
  await new Promise((echoed) => upgraded.once('data', echoed));
  upgraded.end();
  await side.hears('in_flight', ({ n }) => n === 1);
  app.release();
  assert.equal((await stream).body, `${app.child.pid}\nlast`);
  await side.hears('in_flight', ({ n }) => n === 0);
  assert.equal(app.exit, null);
});

test('a worker with an address of its own that is not stopped after its drain serves on', async (t) => {
  const side = await sidecar(t);
  const app = await start(t, NAIVE, told(side));
  await side.hears('hello');
  const client = new Client(app.port);
  side.say({ type: 'drain', deadline_ms: 300 });
  await side.hears('in_flight');
  assert.equal((await client.ask('/')).connection, 'close');
  await until('the drain is over', async () => (await client.ask('/')).connection === 'keep-alive');
});

test('the last of two drains counts', async (t) => {
  const side = await sidecar(t);
  const app = await start(t, NAIVE, told(side));
  await side.hears('hello');
  side.say({ type: 'drain', deadline_ms: 100 });
  side.say({ type: 'drain', deadline_ms: 60_000 });
  await until('both are heard', () => side.of('in_flight').length >= 2);
  await sleep(200);
  assert.equal((await new Client(app.port).ask('/')).connection, 'close');
});

test('several servers are all named', async (t) => {
  const side = await sidecar(t);
  const source = `${NAIVE} http.createServer(serve).listen(0, '127.0.0.1');
    http.createServer(serve).listen(process.env.SOCKET, () => say('all'));`;
  const socket = `${side.directory}/app.sock`;
  const app = await start(t, source, told(side, { SOCKET: socket }));
  await app.says('all');
  const last = () => [...side.of('hello'), ...side.of('listening')].at(-1)?.listens;
  await until('three places are told', () => last()?.length === 3, () => JSON.stringify(side.heard));
  assert.equal(last().filter(({ port }) => port).length, 2);
  assert.deepEqual(last().filter(({ path }) => path), [{ path: socket }]);
});

test('ready is said for an app that does not, when PM2 waits for it', async (t) => {
  const naive = await start(t, NAIVE, { env: { wait_ready: 'true' } });
  await naive.says('ready');
  const source = NAIVE.replace('listening', 'function () { listening.call(this); say("ready"); }');
  const app = await start(t, source, { env: { wait_ready: 'true' } });
  const unasked = await start(t, NAIVE);
  const off = await start(t, NAIVE, { env: { wait_ready: 'true', HANDOFF_PRELOAD_READY: 'off' } });
  await sleep(500);
  const readies = [naive, app, unasked, off].map(({ words }) => words.filter((word) => word === 'ready').length);
  assert.deepEqual(readies, [1, 1, 0, 0]);
});

const UNTOUCHED = `
  const { EventEmitter } = require('node:events');
  say(String(process.emit === EventEmitter.prototype.emit) + (process.exit.toString().includes('holdsExit')));
`;

test('nothing happens in a process that PM2 did not start', async (t) => {
  const of = async (env) => {
    const app = new App(t, UNTOUCHED, { env });
    await until('the app says something', () => app.words.length > 0, () => app.output);
    return app.words[0];
  };
  assert.equal(await of({ pm_id: '7' }), 'falsetrue');
  assert.equal(await of({ HANDOFF_PRELOAD: 'off' }), 'truefalse');
  assert.equal(await of({ pm_id: undefined }), 'truefalse');
  assert.equal(await of({ pm_id: undefined, HANDOFF_PRELOAD: 'on' }), 'falsetrue');
});

test('a process that does not listen is as it was', async (t) => {
  const side = await sidecar(t);
  const app = new App(t, 'say("up"); setInterval(() => {}, 1000);', told(side));
  await app.says('up');
  app.kill('SIGINT');
  assert.equal(await app.ends(), 'SIGINT');
  assert.deepEqual(side.heard, []);
  const short = new App(t, '', told(side));
  assert.equal(await short.ends(), 0);
});

test('a process whose server is closed ends as it was', async (t) => {
  const side = await sidecar(t);
  const source = 'const s = http.createServer(serve).listen(0, () => setTimeout(() => s.close(), 50));';
  const app = new App(t, source, told(side));
  assert.equal(await app.ends(), 0);
  await side.hears('hello');
});

test('threads and children that do not listen are left alone', async (t) => {
  const source = `
    const { Worker } = require('node:worker_threads');
    const { fork } = require('node:child_process');
    const thread = \`const untouched = process.emit === require('node:events').prototype.emit;
      require('node:worker_threads').parentPort.postMessage(untouched);\`;
    new Worker(thread, { eval: true }).on('message', (untouched) => say('thread ' + untouched));
    if (!process.env.CHILD) {
      fork(__filename, { env: { ...process.env, CHILD: 'yes' } }).on('exit', (code) => say('child ' + code));
      ${NAIVE}
    }
  `;
  const app = await start(t, source);
  await app.says('thread true');
  await app.says('child 0');
});

test('loaded twice, it is there once', async (t) => {
  const { PRELOAD } = require('./stage/app.js');
  const side = await sidecar(t);
  const app = await start(t, HANDLED, { ...told(side, { NODE_OPTIONS: `--require ${PRELOAD}` }) });
  await side.hears('hello');
  app.kill('SIGINT');
  await app.says('signal');
  assert.equal(side.of('hello').length, 1);
  assert.equal(app.words.filter((word) => word === 'signal').length, 1);
});
