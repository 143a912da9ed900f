'use strict';

// A real PM2 with a home of its own, on the Node that runs the test.

const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const { execFile } = require('node:child_process');
const { PRELOAD } = require('./app.js');
const { until } = require('./until.js');

const PACKAGES = path.join(__dirname, '../../../../tests/pm2/node_modules');

class Pm2 {
  constructor(test, version) {
    this.cli = path.join(PACKAGES, version, 'bin/pm2');
    this.home = fs.mkdtempSync(path.join(os.tmpdir(), 'handoff-pm2-'));
    this.orders = path.join(this.home, 'orders');
    fs.symlinkSync(path.join(__dirname, '../node_modules'), path.join(this.home, 'node_modules'));
    test.after(() => this.end());
  }

  // `source` is the app; `preload: false` is the control.
  async start(source, { preload = true, env, ...settings } = {}) {
    const prologue = `const { say, serve } = require(${JSON.stringify(require.resolve('./routes.cjs'))});\n`;
    fs.writeFileSync(path.join(this.home, 'app.js'), prologue + source);
    const app = {
      name: 'shop',
      script: 'app.js',
      cwd: this.home,
      node_args: preload ? ['-r', PRELOAD] : [],
      ...settings,
      env: { ORDERS: this.orders, HANDOFF_PRELOAD_SOCKET: path.join(this.home, 'none.sock'), ...env },
    };
    fs.writeFileSync(path.join(this.home, 'ecosystem.json'), JSON.stringify({ apps: [app] }));
    await this.run('start', path.join(this.home, 'ecosystem.json'));
  }

  run(...args) {
    const { HOME } = process.env;
    const PATH = `${path.dirname(process.execPath)}:${process.env.PATH}`;
    const env = { HOME, PATH, PM2_HOME: this.home, PM2_DISCRETE_MODE: 'true' };
    return new Promise((done, failed) => {
      execFile(process.execPath, [this.cli, ...args], { env, maxBuffer: 1 << 26 }, (error, output, errors) =>
        error ? failed(new Error(`pm2 ${args.join(' ')}: ${output}${errors}${this.log}`)) : done(output),
      );
    });
  }

  async pids() {
    return (await this.run('pid', 'shop')).trim().split('\n').map(Number);
  }

  get log() {
    return fs.readFileSync(path.join(this.home, 'pm2.log'), 'utf8');
  }

  // Order ids by what became of them where they are executed.
  executed(what) {
    return this.steps.filter(([step]) => step === what).map(([, id]) => id);
  }

  // The process of a worker that is executing an order just now.
  async busy() {
    let order;
    await until('an order is being executed', () => {
      const done = new Set(this.executed('done'));
      order = this.steps.findLast(([step, id, pid]) => step === 'start' && !done.has(id) && this.owns(pid));
      return order;
    });
    return Number(order[2]);
  }

  get steps() {
    const text = fs.existsSync(this.orders) ? fs.readFileSync(this.orders, 'utf8') : '';
    return text.split('\n').slice(0, -1).map((line) => line.split(' '));
  }

  async end() {
    await this.run('kill').catch(() => {});
    const left = () => fs.readdirSync('/proc').filter((pid) => Number(pid) && this.owns(pid));
    await until('nothing of it is left', () => {
      left().forEach((pid) => process.kill(Number(pid), 'SIGKILL'));
      return left().length === 0;
    });
    fs.rmSync(this.home, { recursive: true, force: true });
  }

  owns(pid) {
    try {
      return fs.readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0').includes(`PM2_HOME=${this.home}`);
    } catch {
      return false;
    }
  }
}

// Two ports in a row that nobody listens on, the first of them; below those that the system gives to clients.
async function freePort() {
  for (;;) {
    const port = 10_000 + 2 * Math.floor(Math.random() * 10_000);
    if ((await isFree(port)) && (await isFree(port + 1))) return port;
  }
}

function isFree(port) {
  return new Promise((done) => {
    const server = net.createServer().on('error', () => done(false));
    server.listen(port, '127.0.0.1', () => server.close(() => done(true)));
  });
}

module.exports = { Pm2, freePort };
