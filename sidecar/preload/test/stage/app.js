'use strict';

// One app, as PM2 would start it, without PM2.

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { fork } = require('node:child_process');
const { until } = require('./until.js');

const PRELOAD = path.join(__dirname, '../../handoff.cjs');
const ROUTES = path.join(__dirname, 'routes.cjs');

// What every app of a test begins with: the names that it may use.
const PROLOGUE = {
  cjs: `const http = require('node:http'); const { hold, say, serve } = require(${JSON.stringify(ROUTES)});
        const listening = function () { say({ port: this.address().port }); };\n`,
  mjs: `import http from 'node:http'; import routes from ${JSON.stringify(ROUTES)}; const { hold, say, serve } = routes;
        const listening = function () { say({ port: this.address().port }); };\n`,
};

const NAIVE = 'http.createServer(serve).listen(0, "127.0.0.1", listening);';

// Of the environment only what Node itself needs: the tests may run inside of PM2, or of a test runner.
function environment(directory, env) {
  const { PATH, HOME } = process.env;
  const pm2 = { pm_id: '7', exec_mode: 'fork_mode', PM2_HOME: directory };
  const own = { RELEASE: path.join(directory, 'release'), HANDOFF_PRELOAD_SOCKET: path.join(directory, 'none.sock') };
  return { PATH, HOME, NODE_PATH: path.join(__dirname, '../node_modules'), ...pm2, ...own, ...env };
}

class App {
  // `preload: false` is the control: the same app without us.
  constructor(test, source, options = {}) {
    const { env = {}, preload = true, type = 'cjs', execArgv = [], prologue = PROLOGUE[type], cwd } = options;
    this.directory = fs.mkdtempSync(path.join(os.tmpdir(), 'handoff-preload-'));
    // Imports look for packages beside the file.
    fs.symlinkSync(path.join(__dirname, '../node_modules'), path.join(this.directory, 'node_modules'));
    const file = path.join(this.directory, `app.${type}`);
    fs.writeFileSync(file, prologue + source);
    this.words = [];
    this.output = '';
    this.exit = null;
    this.child = fork(file, {
      execArgv: preload ? ['-r', PRELOAD, ...execArgv] : execArgv,
      env: environment(this.directory, env),
      cwd,
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    });
    this.child.on('message', (word) => this.words.push(word));
    this.child.on('exit', (code, signal) => (this.exit = { code, signal, at: performance.now() }));
    for (const stream of [this.child.stdout, this.child.stderr]) stream.on('data', (text) => (this.output += text));
    test.after(() => {
      this.child.kill('SIGKILL');
      fs.rmSync(this.directory, { recursive: true, force: true });
    });
  }

  // The address, when the app says it.
  async listens() {
    const named = () => this.words.find((word) => word.port);
    await until('the app listens', () => named() || this.exit, () => this.output);
    if (!named()) throw new Error(`the app has ended: ${this.output}`);
    this.port = named().port;
    return this;
  }

  says(word, times = 1) {
    const said = () => this.words.filter((one) => one === word).length >= times;
    return until(`the app says ${word}`, said, () => `${JSON.stringify(this.words)} ${this.output}`);
  }

  async ends() {
    await until('the app ends', () => this.exit, () => `${JSON.stringify(this.words)} ${this.output}`);
    const { code, signal } = this.exit;
    return signal ?? code;
  }

  kill(signal) {
    this.killed = performance.now();
    this.child.kill(signal);
  }

  get lasted() {
    return this.exit.at - this.killed;
  }

  release() {
    fs.writeFileSync(path.join(this.directory, 'release'), '');
  }
}

async function start(test, source, options) {
  return new App(test, source, options).listens();
}

module.exports = { App, NAIVE, PRELOAD, start };
