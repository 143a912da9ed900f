'use strict';

// The servers that Node has, besides plain HTTP/1.

const assert = require('node:assert/strict');
const http2 = require('node:http2');
const https = require('node:https');
const net = require('node:net');
const { once } = require('node:events');
const { test } = require('node:test');
const { setTimeout: sleep } = require('node:timers/promises');
const { App, NAIVE, start } = require('./stage/app.js');
const { certificate } = require('./stage/certificate.js');
const { sidecar } = require('./stage/sidecar.js');
const { until } = require('./stage/until.js');

const TLS = `const read = (name) => require('node:fs').readFileSync(process.env[name]);
             const tls = { key: read('KEY'), cert: read('CERT') };`;

// Answers what is in flight, refuses what is new, ends.
async function finishes(app, answer) {
  app.kill('SIGINT');
  await sleep(100);
  assert.equal(app.exit, null);
  app.release();
  assert.equal(await answer, 'held');
  assert.equal(await app.ends(), 'SIGINT');
  assert.equal(app.output, '');
}

function ask(session, path) {
  const stream = session.request({ ':path': path }).setEncoding('utf8');
  return new Promise((done, failed) => {
    let body = '';
    stream.on('data', (text) => (body += text)).on('end', () => done(body)).on('error', failed);
  });
}

test('https', async (t) => {
  const env = certificate(t);
  const source = `${TLS} require('node:https').createServer(tls, serve).listen(0, '127.0.0.1', listening);`;
  const app = await start(t, source, { env });
  const agent = new https.Agent({ keepAlive: true, rejectUnauthorized: false });
  const get = (path) =>
    new Promise((done, failed) => {
      const heard = (response) => response.setEncoding('utf8').on('data', (body) => done({ body, response }));
      https.get({ host: '127.0.0.1', port: app.port, path, agent }, heard).on('error', failed);
    });
  const answer = get('/hold');
  await app.says('held');
  await finishes(app, answer.then(({ body }) => body));
  assert.equal((await answer).response.headers.connection, 'close');
});

const HTTP2 = {
  cleartext: "require('node:http2').createServer(serve).listen(0, '127.0.0.1', listening);",
  secure: `${TLS} require('node:http2').createSecureServer({ ...tls, allowHTTP1: true }, serve)
             .listen(0, '127.0.0.1', listening);`,
};

for (const [kind, source] of Object.entries(HTTP2)) {
  test(`http2, ${kind}: a stream is finished, and no other one begun`, async (t) => {
    const env = kind === 'secure' ? certificate(t) : {};
    const app = await start(t, source, { env });
    const scheme = kind === 'secure' ? 'https' : 'http';
    const session = http2.connect(`${scheme}://127.0.0.1:${app.port}`, { rejectUnauthorized: false });
    const goaway = once(session, 'goaway');
    const answer = ask(session, '/hold');
    await app.says('held');
    const finished = finishes(app, answer);
    await goaway;
    await finished;
    await until('the session is closed', () => session.destroyed);
  });
}

test('http2 in the words of streams, and a session without one', async (t) => {
  const source = `
    require('node:http2').createServer().on('stream', (stream) => { stream.respond(); hold(stream, 'held'); })
      .listen(0, '127.0.0.1', listening);`;
  const app = await start(t, source);
  const [session, idle] = [1, 2].map(() => http2.connect(`http://127.0.0.1:${app.port}`));
  await once(idle, 'remoteSettings');
  const answer = ask(session, '/');
  await app.says('held');
  await finishes(app, answer);
  await until('both sessions are closed', () => session.destroyed && idle.destroyed);
});

test('http2: a session that begins while nginx is still to be told is answered, and ends', async (t) => {
  const side = await sidecar(t, {});
  const app = await start(t, HTTP2.cleartext, { env: { HANDOFF_PRELOAD_SOCKET: side.path, kill_timeout: '8000' } });
  await side.hears('hello');
  app.kill('SIGINT');
  await side.hears('stopping');
  const session = http2.connect(`http://127.0.0.1:${app.port}`).on('error', () => {});
  await once(session, 'goaway');
  side.say({ type: 'ack' });
  assert.equal(await app.ends(), 'SIGINT');
});

test('WebSockets, with ws', async (t) => {
  const source = `
    const server = http.createServer(serve).listen(0, '127.0.0.1', listening);
    new (require('ws').WebSocketServer)({ server })
      .on('connection', (socket) => socket.on('message', (data) => socket.send(data)));`;
  const app = await start(t, source, { env: { kill_timeout: '8000' } });
  const { WebSocket } = require('ws');
  const socket = new WebSocket(`ws://127.0.0.1:${app.port}/`);
  await once(socket, 'open');
  app.kill('SIGINT');
  // Longer than an idle connection would be left open.
  await sleep(1500);
  socket.send('still there');
  assert.equal(String((await once(socket, 'message'))[0]), 'still there');
  socket.close();
  assert.equal(await app.ends(), 'SIGINT');
  assert.ok(app.lasted < 4000, `${app.lasted} ms`);
});

test('a server without WebSockets still answers who asks for one', async (t) => {
  const app = await start(t, NAIVE);
  const socket = net.connect(app.port, '127.0.0.1');
  socket.write('GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n');
  assert.match(String((await once(socket, 'data'))[0]), /^HTTP\/1.1 200/);
  socket.destroy();
});

test('several servers: all finish', async (t) => {
  const source = `
    http.createServer(serve).listen(0, '127.0.0.1', listening);
    http.createServer(serve).listen(0, '127.0.0.1', function () { say({ second: this.address().port }); });`;
  const app = await start(t, source);
  await until('both listen', () => app.words.some(({ second }) => second));
  const { second } = app.words.find((word) => word.second);
  const { Client } = require('./stage/client.js');
  const answers = [app.port, second].map((port) => new Client(port).ask('/hold'));
  await app.says('held', 2);
  await finishes(app, Promise.all(answers).then(([one, two]) => (one.body === two.body ? one.body : 'not both')));
});

test('a client that leaves is not waited for, nor are those who queue behind its request', async (t) => {
  const app = await start(t, NAIVE, { env: { kill_timeout: '8000' } });
  const socket = net.connect(app.port, '127.0.0.1');
  const request = 'GET /hold HTTP/1.1\r\nHost: a\r\n\r\n';
  socket.write(request + request + request);
  await app.says('held', 3);
  app.kill('SIGINT');
  await sleep(50);
  socket.destroy();
  assert.equal(await app.ends(), 'SIGINT');
  assert.ok(app.lasted < 1000, `${app.lasted} ms`);
});

test('an ES module', async (t) => {
  const app = await start(t, NAIVE, { type: 'mjs' });
  const { Client } = require('./stage/client.js');
  const answer = new Client(app.port).ask('/hold');
  await app.says('held');
  await finishes(app, answer.then(({ body }) => body));
});

test('a server that is no web server is left alone', async (t) => {
  const source = 'require("node:net").createServer((socket) => socket.pipe(socket)).listen(0, "127.0.0.1", listening);';
  const app = await start(t, source);
  const socket = net.connect(app.port, '127.0.0.1').on('error', () => {});
  await once(socket, 'connect');
  app.kill('SIGINT');
  assert.equal(await app.ends(), 'SIGINT');
});

test('an address that is taken is an error as ever', async (t) => {
  const taken = net.createServer().listen(0, '127.0.0.1');
  t.after(() => taken.close());
  await once(taken, 'listening');
  const { port } = taken.address();
  const source = `http.createServer(serve).on('error', (error) => say(error.code)).listen(${port}, '127.0.0.1');`;
  const app = new App(t, source);
  await app.says('EADDRINUSE');
  assert.equal(await app.ends(), 0);
});
