'use strict';

// What `npm install handoff-preload` brings, and that `-r handoff-preload` finds it.

const assert = require('node:assert/strict');
const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { test } = require('node:test');
const { NAIVE, start } = require('./stage/app.js');
const { sidecar } = require('./stage/sidecar.js');

const ROOT = path.join(__dirname, '../../..');

function temporary(t) {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'handoff-npm-'));
  t.after(() => fs.rmSync(directory, { recursive: true }));
  return directory;
}

const run = (command, args, options) => execFileSync(command, args, { encoding: 'utf8', ...options });

test('its version is that of the workspace', () => {
  const cargo = fs.readFileSync(path.join(ROOT, 'Cargo.toml'), 'utf8');
  const { version } = require('../package.json');
  assert.equal(version, /^\[workspace\.package\]\nversion = "(.*)"/m.exec(cargo)[1]);
});

test('the package, installed into an app, is found by its name', async (t) => {
  const app = temporary(t);
  const tarball = run(path.join(ROOT, 'build/npm-package'), [temporary(t)]).trim();
  fs.writeFileSync(path.join(app, 'package.json'), '{ "name": "shop", "private": true }');
  run('npm', ['install', '--offline', '--no-audit', '--no-fund', '--silent', tarball], { cwd: app });
  const installed = path.join(app, 'node_modules/handoff-preload');
  assert.deepEqual(fs.readdirSync(installed).sort(), ['LICENSE', 'README.md', 'handoff.cjs', 'package.json']);
  assert.deepEqual(Object.keys(require(path.join(installed, 'package.json')).dependencies ?? {}), []);

  const side = await sidecar(t);
  const options = { preload: false, execArgv: ['-r', 'handoff-preload'], cwd: app };
  await start(t, NAIVE, { ...options, env: { HANDOFF_PRELOAD_SOCKET: side.path } });
  await side.hears('hello');
});
