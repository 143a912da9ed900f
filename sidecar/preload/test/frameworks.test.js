'use strict';

// What people write their servers with: without a handler, and with the one that their framework recommends.

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { setTimeout: sleep } = require('node:timers/promises');
const { start } = require('./stage/app.js');
const { Client } = require('./stage/client.js');

const ROUTES = JSON.stringify(require.resolve('./stage/routes.cjs'));
const ANSWER = 'const answer = () => new Promise((done) => hold({ end: done }, "held"));';

const APPS = {
  express: {
    source: `const app = require('express')();
      app.get('/hold', async (request, response) => response.send(await answer()));
      const server = app.listen(0, '127.0.0.1', listening);`,
    handler: "process.on('SIGINT', () => server.close(() => process.exit(0)));",
  },
  fastify: {
    source: `const app = require('fastify')();
      app.get('/hold', answer);
      app.listen({ port: 0, host: '127.0.0.1' }).then(() => listening.call(app.server));`,
    handler: "process.on('SIGINT', async () => { await app.close(); process.exit(0); });",
  },
  koa: {
    source: `const app = new (require('koa'))();
      app.use(async (context) => { context.body = await answer(); });
      const server = app.listen(0, '127.0.0.1', listening);`,
    handler: "process.once('SIGINT', () => server.close(() => process.exit(0)));",
  },
  nest: {
    source: `require('reflect-metadata');
      const { Controller, Get, Module } = require('@nestjs/common');
      class Holds { hold() { return answer(); } }
      Get('/hold')(Holds.prototype, 'hold', Object.getOwnPropertyDescriptor(Holds.prototype, 'hold'));
      Controller()(Holds);
      class Root {}
      Module({ controllers: [Holds] })(Root);
      require('@nestjs/core').NestFactory.create(Root, { logger: false }).then(async (app) => {
        if (process.env.HOOKS) app.enableShutdownHooks();
        await app.listen(0, '127.0.0.1');
        listening.call(app.getHttpServer());
      });`,
    env: { HOOKS: 'yes' },
    // Nest ends itself, when it is through, by the signal that it got.
    ends: 'SIGINT',
  },
};

async function survives(t, source, options, ends) {
  const app = await start(t, ANSWER + source, options);
  const answer = new Client(app.port).ask('/hold');
  await app.says('held');
  app.kill('SIGINT');
  await sleep(100);
  app.release();
  const { status, body, connection } = await answer;
  assert.deepEqual({ status, body, connection }, { status: 200, body: 'held', connection: 'close' });
  assert.equal(await app.ends(), ends);
}

for (const [name, { source, handler = '', env, ends = 0 }] of Object.entries(APPS)) {
  test(`${name}, without a handler`, (t) => survives(t, source, {}, 'SIGINT'));
  test(`${name}, with its own`, (t) => survives(t, source + handler, { env }, ends));
}

test('tsx: TypeScript, as an ES module', async (t) => {
  const prologue = `import http from 'node:http'; import routes from ${ROUTES};
    const { hold, say, serve }: Record<string, (...of: unknown[]) => unknown> = routes as never;
    const listening = function (this: http.Server): void { say({ port: (this.address() as Port).port }); };
    type Port = { port: number };`;
  const source = 'http.createServer(serve as never).listen(0, "127.0.0.1", listening);';
  const loader = ['--import', require.resolve('tsx')];
  await survives(t, source, { type: 'mts', prologue: `${prologue}\n`, execArgv: loader }, 'SIGINT');
});
