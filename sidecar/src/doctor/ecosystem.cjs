'use strict';

// What an ecosystem file says, as PM2 reads it:
//
//   node - <PM2's directory> <file> < ecosystem.cjs
//
// The file may be code, and is run. What is handed on is named here, and no environment: of that, only each PORT. The last
// line on standard output is the result.

const fs = require('node:fs');
const path = require('node:path');
const { stripVTControlCharacters } = require('node:util');

const [root, file] = process.argv.slice(2);
const said = [];
const write = process.stdout.write.bind(process.stdout);
const exit = process.exit.bind(process);
process.stdout.write = process.stderr.write = (text) => said.push(stripVTControlCharacters(String(text)).trim());

function finish(found) {
  if (finish.done) return;
  finish.done = true;
  write(`\n${JSON.stringify(found)}\n`, () => exit(0));
}

/// The first line of what is wrong, and where, if that is known: what follows may quote the file.
function refuse(error) {
  const place = /^(\/.*:\d+)$/m.exec(String(error.stack).split('\n', 1)[0]);
  const text = String(error.message || said.at(-1) || error).split('\n', 1)[0];
  finish({ refused: place ? `${place[1]}: ${text}` : text });
}

const number = (value) => (Number.isFinite(Number(value)) && value !== '' && value !== null ? Number(value) : undefined);
const flag = (value) => (typeof value === 'boolean' ? value : undefined);
const text = (value) => (typeof value === 'string' ? value : undefined);

function described(app, raw) {
  const envs = Object.keys(raw).filter((key) => key.startsWith('env_') && typeof raw[key] === 'object');
  const ports = {};
  for (const block of ['env', ...envs]) {
    const port = number(raw[block]?.PORT);
    if (Number.isInteger(port) && port > 0 && port < 65536) ports[block] = port;
  }
  return {
    name: String(app.name),
    exec_mode: text(app.exec_mode),
    wait_ready: flag(app.wait_ready),
    treekill: flag(app.treekill),
    listen_timeout: number(app.listen_timeout),
    kill_timeout: number(app.kill_timeout),
    min_uptime: number(app.min_uptime),
    max_restarts: number(app.max_restarts),
    increment_var: text(app.increment_var),
    ports,
    envs: envs.map((block) => block.slice('env_'.length)),
  };
}

process.exit = () => refuse(new Error('the file ends the process that reads it'));
process.on('uncaughtException', refuse);

const Common = require(path.join(root, 'lib/Common.js'));
const config = Common.parseConfig(fs.readFileSync(file), file);
const raw = [].concat(config.apps ?? config.pm2 ?? config).map((app) => ({ ...app }));
const checked = Common.verifyConfs([].concat(config.apps ?? config.pm2 ?? config));
if (checked instanceof Error) {
  refuse(checked);
} else {
  finish({ apps: checked.map((app, index) => described(app, raw[index])) });
}
