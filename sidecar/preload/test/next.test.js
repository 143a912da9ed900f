'use strict';

// `next start`, only when it is asked for (HANDOFF_NEXT=yes): it installs and builds 400 MB.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { execFileSync } = require('node:child_process');
const { test } = require('node:test');
const { setTimeout: sleep } = require('node:timers/promises');
const { App } = require('./stage/app.js');
const { Client } = require('./stage/client.js');
const { freePort } = require('./stage/pm2.js');
const { until } = require('./stage/until.js');

const PACKAGES = ['next@15.1.7', 'react@19.0.0', 'react-dom@19.0.0'];
const PAGES = {
  'index.js': 'export default function Page() { return "hi"; }',
  'api/slow.js': `export default function slow(request, response) {
    process.send?.('held');
    setTimeout(() => response.json({}), 600);
  }`,
};

function build(directory) {
  for (const [name, page] of Object.entries(PAGES)) {
    const file = path.join(directory, 'pages', name);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, page);
  }
  const options = { cwd: directory, stdio: 'ignore', env: { ...process.env, NEXT_TELEMETRY_DISABLED: '1' } };
  fs.writeFileSync(path.join(directory, 'package.json'), '{"private":true}');
  execFileSync('npm', ['install', '--save-exact', '--no-audit', '--no-fund', ...PACKAGES], options);
  execFileSync('npx', ['next', 'build'], options);
}

test('next start', { skip: process.env.HANDOFF_NEXT !== 'yes' && 'HANDOFF_NEXT=yes' }, async (t) => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'handoff-next-'));
  t.after(() => fs.rmSync(directory, { recursive: true, force: true }));
  build(directory);
  const port = await freePort();
  const source = `
    process.chdir(${JSON.stringify(directory)});
    process.argv.push('start', '-p', '${port}', '-H', '127.0.0.1');
    require(${JSON.stringify(path.join(directory, 'node_modules/next/dist/bin/next'))});`;
  const app = new App(t, source);
  const [first, visitor] = [new Client(port), new Client(port)];
  await until('it serves', async () => (await first.ask('/')).status === 200, () => app.output);
  const answer = visitor.ask('/api/slow');
  await app.says('held');
  app.kill('SIGINT');
  await sleep(50);
  const { status, connection } = await answer;
  assert.deepEqual({ status, connection }, { status: 200, connection: 'close' });
  assert.equal(await app.ends(), 0);
  assert.ok(app.lasted < 1600, `${app.lasted} ms`);
});
