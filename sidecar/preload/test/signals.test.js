'use strict';

// What an app and its visitors see of a signal.

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { setTimeout: sleep } = require('node:timers/promises');
const { NAIVE, start } = require('./stage/app.js');
const { Client } = require('./stage/client.js');
const { until } = require('./stage/until.js');

// Longer than the time in which a second signal counts as the echo of the first.
const NO_ECHO = 600;
const LONG = { env: { kill_timeout: '8000' } };

async function withOneInFlight(t, source, options) {
  const app = await start(t, source, options);
  const answer = new Client(app.port).ask('/hold');
  await app.says('held');
  return { app, answer };
}

for (const signal of ['SIGINT', 'SIGTERM']) {
  test(`without a handler for ${signal}, what is in flight is answered and the signal ends the process`, async (t) => {
    const { app, answer } = await withOneInFlight(t, NAIVE);
    app.kill(signal);
    await sleep(100);
    app.release();
    const { status, connection } = await answer;
    assert.deepEqual({ status, connection }, { status: 200, connection: 'close' });
    assert.equal(await app.ends(), signal);
    assert.equal(app.output, '');
  });
}

test('control: without the preload it is cut', async (t) => {
  const { app, answer } = await withOneInFlight(t, NAIVE, { preload: false });
  app.kill('SIGINT');
  assert.equal((await answer).error, 'ECONNRESET');
});

test('with nothing in flight and no connection the process ends at once', async (t) => {
  const app = await start(t, NAIVE);
  app.kill('SIGINT');
  assert.equal(await app.ends(), 'SIGINT');
  assert.ok(app.lasted < 200, `${app.lasted} ms`);
});

test('an idle connection may ask once more, and is then closed', async (t) => {
  const app = await start(t, NAIVE, LONG);
  const [busy, idle, never] = [new Client(app.port), new Client(app.port), new Client(app.port)];
  await idle.ask('/');
  await never.ask('/');
  const answer = busy.ask('/hold');
  await app.says('held');
  app.kill('SIGINT');
  await sleep(300);
  assert.ok(idle.hasConnection && never.hasConnection);
  assert.equal((await idle.ask('/')).connection, 'close');
  await until('the connection that nobody uses is closed', () => !never.hasConnection);
  app.release();
  assert.equal((await answer).status, 200);
  assert.equal(await app.ends(), 'SIGINT');
});

test('the wait ends before kill_timeout does', async (t) => {
  const { app, answer } = await withOneInFlight(t, NAIVE, { env: { kill_timeout: '1000' } });
  app.kill('SIGINT');
  assert.equal((await answer).error, 'ECONNRESET');
  assert.equal(await app.ends(), 'SIGINT');
  assert.ok(app.lasted > 700 && app.lasted < 1000, `${app.lasted} ms`);
});

const HANDLERS = `
  ${NAIVE}
  process.once('SIGTERM', (...args) => say(['once', ...args]));
  process.on('SIGTERM', (...args) => say(['on', ...args]));
  process.prependListener('SIGTERM', (...args) => say(['first', ...args]));
  setTimeout(() => {
    process.on('SIGTERM', () => say(['late', process.listenerCount('SIGTERM')]));
    say(process.listeners('SIGTERM').length);
    say(process.listenerCount('SIGINT') + process.eventNames().filter((name) => name === 'SIGINT').length);
  }, 50);
`;

test('handlers see what they would have seen', async (t) => {
  const seen = [];
  for (const preload of [false, true]) {
    const app = await start(t, HANDLERS, { preload });
    await app.says(4);
    app.kill('SIGTERM');
    await until('all have been called', () => app.words.some((word) => word[0] === 'late'), () => app.words);
    seen.push(app.words.slice(1));
  }
  assert.deepEqual(seen[1], seen[0]);
  const signal = ['SIGTERM', 15];
  assert.deepEqual(seen[1].slice(2), [['first', ...signal], ['once', ...signal], ['on', ...signal], ['late', 3]]);
});

const GRACEFUL = `
  const server = http.createServer(serve).listen(0, '127.0.0.1', listening);
  process.once('SIGINT', () => { say(server.listening); server.close((error) => process.exit(error ? 1 : 0)); });
`;

test('an app that closes its server does so as ever', async (t) => {
  const { app, answer } = await withOneInFlight(t, GRACEFUL);
  const idle = new Client(app.port);
  await idle.ask('/');
  app.kill('SIGINT');
  await app.says(true);
  // Node 19 and later cut idle connections as soon as a server is closed.
  assert.equal((await idle.ask('/')).status, 200);
  app.release();
  assert.equal((await answer).status, 200);
  assert.equal(await app.ends(), 0);
});

const EXITS = `${NAIVE} process.on('SIGINT', () => { say('exit'); process.exit(3); });
               process.on('exit', (code) => say('exit ' + code));`;

test('an exit in a handler waits for what is in flight, and keeps its code', async (t) => {
  const { app, answer } = await withOneInFlight(t, EXITS);
  app.kill('SIGINT');
  await app.says('exit');
  app.release();
  assert.equal((await answer).status, 200);
  assert.equal(await app.ends(), 3);
  assert.deepEqual(app.words.filter((word) => word.startsWith?.('exit')), ['exit', 'exit 3']);
});

test('control: without the preload that exit cuts it', async (t) => {
  const { app, answer } = await withOneInFlight(t, EXITS, { preload: false });
  app.kill('SIGINT');
  assert.equal((await answer).error, 'ECONNRESET');
});

test('an exit with nothing in flight is not held', async (t) => {
  const app = await start(t, EXITS, LONG);
  await new Client(app.port).ask('/');
  app.kill('SIGINT');
  assert.equal(await app.ends(), 3);
  assert.ok(app.lasted < 200, `${app.lasted} ms`);
});

test('an exit after an uncaught exception is not held', async (t) => {
  const source = `${NAIVE}
    process.on('uncaughtException', () => process.exit(9));
    process.on('SIGINT', () => { throw new Error('in a handler'); });`;
  const { app, answer } = await withOneInFlight(t, source, LONG);
  app.kill('SIGINT');
  assert.equal((await answer).error, 'ECONNRESET');
  assert.equal(await app.ends(), 9);
});

test('an exit that is no shutdown is not held', async (t) => {
  const { app } = await withOneInFlight(t, `${NAIVE} process.on('SIGUSR2', () => process.exit(4));`);
  app.kill('SIGUSR2');
  assert.equal(await app.ends(), 4);
});

test('a second signal ends the wait', async (t) => {
  for (const [source, how] of [[NAIVE, 'SIGINT'], [EXITS, 3]]) {
    const { app } = await withOneInFlight(t, source, LONG);
    app.kill('SIGINT');
    await sleep(NO_ECHO);
    assert.equal(app.exit, null);
    app.kill('SIGINT');
    assert.equal(await app.ends(), how);
    assert.ok(app.lasted < 200, `${app.lasted} ms`);
  }
});

test('a second signal reaches a handler that stays', async (t) => {
  const source = `${NAIVE} let n = 0; process.on('SIGINT', () => say('signal ' + ++n));`;
  const { app } = await withOneInFlight(t, source, LONG);
  app.kill('SIGINT');
  await app.says('signal 1');
  await sleep(NO_ECHO);
  app.kill('SIGINT');
  await app.says('signal 2');
});

test('two signals at once are one shutdown', async (t) => {
  for (const signals of [['SIGINT', 'SIGINT'], ['SIGINT', 'SIGTERM']]) {
    const source = `${NAIVE} process.on('SIGINT', () => say('signal'));`;
    const { app, answer } = await withOneInFlight(t, source);
    signals.forEach((signal) => app.kill(signal));
    await app.says('signal');
    signals.forEach((signal) => app.kill(signal));
    await sleep(100);
    app.release();
    assert.equal((await answer).status, 200);
    assert.equal(app.words.filter((word) => word === 'signal').length, 1);
    assert.equal(app.exit, null);
  }
});

test('an app that raises its signal again when it has cleaned up', async (t) => {
  const source = `${NAIVE} process.once('SIGINT', () => { say('clean'); process.kill(process.pid, 'SIGINT'); });`;
  const { app, answer } = await withOneInFlight(t, source);
  app.kill('SIGINT');
  await app.says('clean');
  app.release();
  assert.equal((await answer).status, 200);
  assert.equal(await app.ends(), 'SIGINT');
});

test('signal-exit, which counts listeners and replaces process.emit', async (t) => {
  const source = `${NAIVE} require('signal-exit')((code, signal) => say('bye ' + signal));`;
  const { app, answer } = await withOneInFlight(t, source);
  app.kill('SIGTERM');
  await app.says('bye SIGTERM');
  app.release();
  assert.equal((await answer).status, 200);
  assert.equal(await app.ends(), 'SIGTERM');
});

test('an app that emits a signal to nobody lives on', async (t) => {
  const source = `${NAIVE} setTimeout(() => { process.emit('SIGTERM'); process.emit('SIGINT', 'SIGINT'); say('on'); }, 50);`;
  const app = await start(t, source);
  await app.says('on');
  assert.equal((await new Client(app.port).ask('/')).connection, 'keep-alive');
});

test('an app that replaces the methods of process', async (t) => {
  const source = `
    for (const name of ['on', 'once', 'addListener', 'removeAllListeners', 'emit', 'exit']) {
      const method = process[name];
      process[name] = function () { return method.apply(this, arguments); };
    }
    ${NAIVE}
    process.on('SIGINT', () => {});
    process.removeAllListeners('SIGINT');
    process.once('SIGINT', () => process.exit(5));
  `;
  const { app, answer } = await withOneInFlight(t, source);
  app.kill('SIGINT');
  await sleep(50);
  app.release();
  assert.equal((await answer).status, 200);
  assert.equal(await app.ends(), 5);
});

test('an app that takes its only handler away is one without a handler', async (t) => {
  const source = `${NAIVE}
    const handler = () => say('no');
    process.on('SIGINT', handler);
    setTimeout(() => { process.removeListener('SIGINT', handler); say('away'); }, 100);`;
  const { app, answer } = await withOneInFlight(t, source);
  await app.says('away');
  app.kill('SIGINT');
  await sleep(50);
  app.release();
  assert.equal((await answer).status, 200);
  assert.equal(await app.ends(), 'SIGINT');
});

test("PM2's shutdown message is a signal", async (t) => {
  const source = `${NAIVE} process.on('message', (word) => { say(word); if (word === 'shutdown') process.exit(6); });`;
  const { app, answer } = await withOneInFlight(t, source);
  app.child.send('hello');
  app.child.send('shutdown');
  await app.says('shutdown');
  app.release();
  assert.equal((await answer).connection, 'close');
  assert.equal(await app.ends(), 6);
  assert.deepEqual(app.words.slice(2), ['hello', 'shutdown']);
});
