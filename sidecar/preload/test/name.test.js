'use strict';

// Every answer says who gives it, once the sidecar has said so, and is otherwise what it would have been.

const assert = require('node:assert/strict');
const http2 = require('node:http2');
const net = require('node:net');
const tls = require('node:tls');
const { test } = require('node:test');
const { setTimeout: sleep } = require('node:timers/promises');
const { NAIVE, start } = require('./stage/app.js');
const { certificate } = require('./stage/certificate.js');
const { sidecar } = require('./stage/sidecar.js');
const { until } = require('./stage/until.js');

const LINE = 'X-Handoff-Worker: shop:0\r\n';

// All that a server says, but for the time.
function ask(port, path = '/', { method = 'GET', more = '', connect = net.connect } = {}) {
  return new Promise((done, failed) => {
    let text = '';
    const socket = connect({ port, host: '127.0.0.1', rejectUnauthorized: false }).setEncoding('latin1');
    socket.write(`${method} ${path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n${more}\r\n`);
    socket.on('data', (data) => (text += data)).on('error', failed);
    socket.on('end', () => done(text.replace(/Date: .*\r\n/, '')));
  });
}

async function named(t, source, options = {}) {
  const side = await sidecar(t);
  const app = await start(t, source, { ...options, env: { ...options.env, HANDOFF_PRELOAD_SOCKET: side.path } });
  await side.hears('hello');
  return { side, app };
}

// Says a name, and waits until it is told.
async function name(side, app, name, expected, options) {
  side.say({ type: 'name', name });
  const line = expected && `X-Handoff-Worker: ${expected}\r\n`;
  const is = async () => {
    const head = (await ask(app.port, '/', options)).split('\r\n\r\n')[0] + '\r\n';
    return line ? head.includes(line) : !head.includes('X-Handoff');
  };
  await until(`answers say ${expected}`, is);
}

// The last head of what a server said: the others are 1xx.
const signed = (text) => text.replace(/^((?:HTTP\/1.1 10\d .*\r\n(?:.+\r\n)*\r\n)*HTTP\/1.1 .*\r\n)/, `$1${LINE}`);

async function changesNothingElse(t, source, paths, options) {
  const { side, app } = await named(t, source, options);
  const all = async () => {
    const answers = [];
    for (const path of paths) {
      for (const method of ['GET', 'HEAD', 'POST']) answers.push([method, path, await ask(app.port, path, { method })]);
    }
    return answers;
  };
  const before = await all();
  await name(side, app, 'shop:0', 'shop:0');
  const after = await all();
  for (const [index, [method, path, answer]] of before.entries()) {
    assert.ok(!answer.includes('X-Handoff'), answer);
    assert.equal(after[index][2], signed(answer), `${method} ${path}`);
  }
  assert.equal(app.output, '');
  return before.map(([, , answer]) => answer);
}

// What an app can do to its answer; `tell` ends it with what the app sees of it. What it may not do, Node tells it.
const FORMS = {
  implicit: (response) => response.end('ok'),
  object: (response) => response.writeHead(201, { 'X-A': 'a', 'Set-Cookie': ['a=1', 'b=2'] }).end('ok'),
  message: (response) => response.writeHead(200, 'Fine', { 'X-A': 'a' }).end('ok'),
  list: (response) => response.writeHead(200, ['X-A', 'a', 'Set-Cookie', 'a=1', 'Set-Cookie', 'b=2']).end('ok'),
  pairs: (response) => response.writeHead(200, [['X-A', 'a'], ['Set-Cookie', 'a=1'], ['Set-Cookie', 'b=2']]).end('ok'),
  both: (response) => response.setHeader('X-B', 'b').writeHead(200, { 'X-A': 'a' }).end('ok'),
  stream: (response) => (response.write('a'), setTimeout(() => response.end('b'), 20)),
  flush: (response) => (response.flushHeaders(), setTimeout(() => response.end('b'), 20)),
  length: (response) => response.setHeader('Content-Length', 2).end('ok'),
  trailers: (response) => {
    response.writeHead(200, { Trailer: 'X-T' });
    response.write('a');
    response.addTrailers({ 'X-T': 't' });
    response.end();
  },
  empty: (response) => response.writeHead(204).end(),
  unchanged: (response) => response.writeHead(304, { ETag: '"a"' }).end(),
  error: (response) => ((response.statusCode = 500), (response.statusMessage = 'Oh'), response.end('oh')),
  hints: (response) => {
    response.writeContinue();
    response.writeEarlyHints?.({ link: '</a>; rel=preload' });
    response.writeProcessing();
    response.end('ok');
  },
  seen: (response, tell) => {
    response.setHeader('X-A', 'a');
    tell(response.headersSent, response.getHeaderNames(), response.hasHeader('X-Handoff-Worker'));
  },
  removed: (response, tell) => {
    for (const name of ['X-Handoff-Worker', ...response.getHeaderNames()]) response.removeHeader(name);
    tell(response.getHeaders());
  },
  twice: (response, tell) => {
    response.writeHead(200);
    const sent = [['writeHead', 500], ['setHeader', 'X-A', 'a'], ['removeHeader', 'X-A']];
    tell(response.headersSent, sent.map((call) => refused(response, ...call)));
  },
  wrong: (response, tell) => {
    const wrong = [[99], [200, 'a\n'], [200, { 'X-A': '\n' }], [200, ['X-A']]];
    tell(wrong.map((what) => refused(response, 'writeHead', ...what)), response.headersSent);
  },
};

// What they may use.
function refused(response, method, ...args) {
  try {
    response[method](...args);
  } catch (error) {
    return error.code;
  }
}

const SERVES = `
  ${refused}
  const forms = {${Object.entries(FORMS).map(([name, form]) => `${name}: ${form}`)}};
  const act = (request, response) => {
    request.resume();
    const form = forms[request.url.slice(1)] ?? forms.implicit;
    try {
      form(response, (...seen) => response.end(JSON.stringify(seen)));
    } catch (error) {
      response.socket.end(error.code);
    }
  };
`;

const PATHS = Object.keys(FORMS).map((name) => `/${name}`);

test('whatever an app does to its answer', async (t) => {
  const source = `${SERVES} http.createServer(act).listen(0, '127.0.0.1', listening);`;
  const answers = await changesNothingElse(t, source, PATHS);
  assert.equal(answers.filter((answer) => answer.includes('a=1\r\n') && answer.includes('b=2\r\n')).length, 9);
});

test('and however it makes it', async (t) => {
  const source = `${SERVES}
    class Own extends http.ServerResponse {
      writeHead(...args) { this.setHeader('X-Own', 'o'); return super.writeHead(...args); }
    }
    http.createServer({ ServerResponse: Own }, act).listen(0, '127.0.0.1', listening);`;
  await changesNothingElse(t, source, PATHS);
});

const FILE = `require.resolve('koa/package.json')`;
const FRAMEWORKS = {
  express: `const app = require('express')();
    app.set('env', 'test');
    app.use((request, response, next) => (response.removeHeader('X-Handoff-Worker'), next()));
    app.get('/json', (request, response) => response.set('X-A', 'a').cookie('a', '1').cookie('b', '2').json({}));
    app.get('/sent', (request, response) => response.send(String(response.headersSent)));
    app.get('/file', (request, response) => response.sendFile(${FILE}));
    app.get('/redirect', (request, response) => response.redirect('/json'));
    app.get('/throw', () => { throw Object.assign(new Error('oh'), { status: 418, expose: true, stack: 'oh' }); });
    const server = app.listen(0, '127.0.0.1', listening);`,
  fastify: `const app = require('fastify')();
    app.get('/json', (request, reply) => reply.header('Set-Cookie', ['a=1', 'b=2']).send({}));
    app.get('/sent', async (request, reply) => String(reply.sent));
    app.get('/file', (request, reply) => reply.send(require('node:fs').createReadStream(${FILE})));
    app.get('/redirect', (request, reply) => reply.redirect('/json'));
    app.get('/throw', async () => { throw Object.assign(new Error('oh'), { statusCode: 418 }); });
    app.listen({ port: 0, host: '127.0.0.1' }).then(() => listening.call(app.server));`,
  koa: `const app = new (require('koa'))();
    app.silent = true;
    app.use(async (context) => {
      context.set('Set-Cookie', ['a=1', 'b=2']);
      context.remove('X-Handoff-Worker');
      if (context.path === '/json') context.body = {};
      if (context.path === '/sent') context.body = String(context.headerSent);
      if (context.path === '/file') context.body = require('node:fs').createReadStream(${FILE});
      if (context.path === '/redirect') context.redirect('/json');
      if (context.path === '/throw') context.throw(418, 'oh');
    });
    const server = app.listen(0, '127.0.0.1', listening);`,
};

for (const [framework, source] of Object.entries(FRAMEWORKS)) {
  test(framework, async (t) => {
    const answers = await changesNothingElse(t, source, ['/json', '/sent', '/file', '/redirect', '/throw', '/gone']);
    const statuses = answers.map((answer) => answer.slice(9, 12));
    for (const status of ['200', '302', '404', '418']) assert.ok(statuses.includes(status), statuses);
  });
}

test('a header of this name that the app sets is its own, behind ours', async (t) => {
  const source = `http.createServer((request, response) => {
    response.setHeader('X-Handoff-Worker', 'mine');
    response.end(response.getHeader('X-Handoff-Worker'));
  }).listen(0, '127.0.0.1', listening);`;
  const { side, app } = await named(t, source);
  assert.match(await ask(app.port), /OK\r\nX-Handoff-Worker: mine\r\n/);
  side.say({ type: 'name', name: 'shop:0' });
  await until('it is signed', async () => (await ask(app.port)).includes(LINE));
  assert.match(await ask(app.port), /OK\r\nX-Handoff-Worker: shop:0\r\nX-Handoff-Worker: mine\r\n[^]*\r\n\r\nmine$/);
});

const NAMES = [
  ['shop:0', 'shop:0'],
  ['my shop:12', 'my%20shop:12'],
  ['100%:0', '100%25:0'],
  ['a%20b:0', 'a%2520b:0'],
  ['a"b\\c;,~!:0', 'a"b\\c;,~!:0'],
  ['a\r\nSet-Cookie: a:0', 'a%0D%0ASet-Cookie:%20a:0'],
  ['\t\0\x7f:0', '%09%00%7F:0'],
  ['Läden:0', 'L%C3%A4den:0'],
  ['店😀:0', '%E5%BA%97%F0%9F%98%80:0'],
  ['\ud800:0', '%EF%BF%BD:0'],
  [`${'a'.repeat(126)}:0`, `${'a'.repeat(126)}:0`],
  [`b${'a'.repeat(126)}:0`, `${'a'.repeat(126)}:0`],
  [`${'店'.repeat(15)}:0`, `${'%E5%BA%97'.repeat(14)}:0`],
  ['店'.repeat(1000), '%E5%BA%97'.repeat(14)],
  ['', null],
  ['shop:1', 'shop:1'],
  [null, null],
  ['shop:2', 'shop:2'],
  [7, null],
  ['shop:3', 'shop:3'],
  [undefined, null],
];

test('a name is spelt in visible ASCII, and may change', async (t) => {
  const { side, app } = await named(t, NAIVE);
  for (const [said, spelt] of NAMES) {
    await name(side, app, said, spelt);
    // Some are what the next one would be, too.
    await sleep(20);
  }
  assert.equal(app.output, '');
});

test('without a sidecar a worker has no name', async (t) => {
  const greet = { hello: (_message, answer) => answer({ type: 'name', name: `shop:${(greetings += 1)}` }) };
  let greetings = 0;
  const side = await sidecar(t, greet);
  const app = await start(t, NAIVE, { env: { HANDOFF_PRELOAD_SOCKET: side.path } });
  await until('it is named', async () => (await ask(app.port)).includes('X-Handoff-Worker: shop:1\r\n'));
  for (const socket of side.sockets) socket.destroy();
  await until('it is not', async () => !(await ask(app.port)).includes('X-Handoff'));
  await until('it is again', async () => (await ask(app.port)).includes('X-Handoff-Worker: shop:2\r\n'));
  side.stop();
  await until('nor now', async () => !(await ask(app.port)).includes('X-Handoff'));
});

test('the last answer of a worker that stops is signed, too', async (t) => {
  const { side, app } = await named(t, NAIVE);
  await name(side, app, 'shop:0', 'shop:0');
  const answer = ask(app.port, '/hold');
  await app.says('held');
  app.kill('SIGINT');
  await sleep(100);
  app.release();
  assert.match(await answer, /^HTTP\/1.1 200 OK\r\nX-Handoff-Worker: shop:0\r\n[^]*Connection: close\r\n[^]*held/);
  assert.equal(await app.ends(), 'SIGINT');
});

test('what the app or Node writes to the socket is theirs alone', async (t) => {
  const source = `http.createServer(serve)
    .on('upgrade', (request, socket) => socket.end('HTTP/1.1 101 Go\\r\\nUpgrade: a\\r\\n\\r\\nhi'))
    .on('connect', (request, socket) => socket.end('HTTP/1.1 200 Go\\r\\n\\r\\nhi'))
    .listen(0, '127.0.0.1', listening);`;
  const { side, app } = await named(t, source);
  await name(side, app, 'shop:0', 'shop:0');
  const upgrade = { more: 'Connection: Upgrade\r\nUpgrade: a\r\n' };
  assert.equal(await ask(app.port, '/', upgrade), 'HTTP/1.1 101 Go\r\nUpgrade: a\r\n\r\nhi');
  assert.equal(await ask(app.port, 'a:1', { method: 'CONNECT' }), 'HTTP/1.1 200 Go\r\n\r\nhi');
  assert.match(await ask(app.port, '/', { method: '?' }), /^HTTP\/1.1 400 Bad Request\r\nConnection: close\r\n\r\n$/);
});

const TLS = `const read = (name) => require('node:fs').readFileSync(process.env[name]);
             const tls = { key: read('KEY'), cert: read('CERT') };`;

test('https', async (t) => {
  const env = certificate(t);
  const source = `${TLS} require('node:https').createServer(tls, serve).listen(0, '127.0.0.1', listening);`;
  const { side, app } = await named(t, source, { env });
  await name(side, app, 'shop:0', 'shop:0', { connect: tls.connect });
});

test('an HTTP/2 server signs what it answers over HTTP/1', async (t) => {
  const env = certificate(t);
  const source = `${TLS} require('node:http2').createSecureServer({ ...tls, allowHTTP1: true }, serve)
    .listen(0, '127.0.0.1', listening);`;
  const { side, app } = await named(t, source, { env });
  await name(side, app, 'shop:0', 'shop:0', { connect: tls.connect });
  const session = http2.connect(`https://127.0.0.1:${app.port}`, { rejectUnauthorized: false });
  const headers = await new Promise((done) => session.request({ ':path': '/' }).on('response', done).resume());
  assert.equal(headers[':status'], 200);
  assert.equal(headers['x-handoff-worker'], undefined);
  session.destroy();
});

test("an app's own requests are not signed, and nothing is replaced before there is a name", async (t) => {
  const source = `
    const own = () => Object.hasOwn(http.ServerResponse.prototype, '_storeHeader');
    const echo = http.createServer((request, response) => response.end(JSON.stringify(request.headers)));
    http.createServer((request, response) => {
      const { port } = echo.address();
      http.get({ port, host: '127.0.0.1' }, (answer) => answer.pipe(response.setHeader('X-Own', String(own()))));
    }).listen(0, '127.0.0.1', function () { echo.listen(0, '127.0.0.1', () => listening.call(this)); });`;
  const { side, app } = await named(t, source);
  assert.match(await ask(app.port), /X-Own: false/);
  await name(side, app, 'shop:0', 'shop:0');
  const [head, body] = (await ask(app.port)).split('\r\n\r\n');
  assert.match(head, /X-Own: true/);
  assert.ok(!body.toLowerCase().includes('handoff'), body);
});
