'use strict';

// What `pm2 reload` would send to its daemon, without sending it:
//
//   node - <PM2's directory> <rpc.sock> <arguments of pm2 reload> < orders.cjs
//
// PM2's own command line runs here, unchanged but for its way to the daemon: questions pass, orders are written down and
// taken for done. Nothing is written to PM2_HOME and nothing is started. The last line on standard output is the result.

const path = require('node:path');
const { format, stripVTControlCharacters } = require('node:util');

const [root, socket, ...wanted] = process.argv.slice(2);
const found = { reload: [], prepare: [], warnings: [], errors: [] };
let workers = [];

const write = process.stdout.write.bind(process.stdout);
const exit = process.exit.bind(process);

/// Says what was found, and ends. Whoever called process.exit() may go on until it is said.
function finish(code) {
  if (finish.done) return;
  finish.done = true;
  if (code && found.errors.length === 0) found.errors.push(`PM2 gives no reason (exit code ${code})`);
  write(`\n${JSON.stringify(found)}\n`, () => exit(0));
}

/// PM2's messages without colours and its own name.
function plain(text) {
  return stripVTControlCharacters(text).replace(/^(\[PM2\])?(\[[A-Z]+\])*\s*/, '').trim();
}

function fail(...message) {
  const error = message[0];
  found.errors.push(plain(error instanceof Error ? oneLine(error) : format(...message)));
}

function warn(message) {
  const text = plain(String(message));
  if (!found.warnings.includes(text)) found.warnings.push(text);
}

/// Where it went wrong, if that is known, and the first line of what is wrong: what follows may quote the file.
function oneLine(error) {
  const place = /^(\/.*:\d+)$/m.exec(String(error.stack).split('\n', 1)[0]);
  const message = String(error.message).split('\n', 1)[0];
  return place ? `${place[1]}: ${message}` : message;
}

/// PORT and its like differ from worker to worker. PM2 would overwrite them all with the one value of the file, or of
/// the shell: each keeps its own.
function keepOwn(worker, env) {
  const conf = env.current_conf ?? {};
  const names = [worker.increment_var, conf.increment_var, worker.instance_var ?? 'NODE_APP_INSTANCE', conf.instance_var];
  for (const values of [env, conf.env]) {
    for (const name of names) {
      if (!name || !values || !(name in values)) continue;
      if (worker[name] === undefined) delete values[name];
      else values[name] = worker[name];
    }
  }
}

/// The worker's port before and after, if the order moves it. A file's own variables replace all that came before.
function moved(worker, env) {
  const replaced = env.current_conf?.env;
  const values = replaced && Object.keys(replaced).length > 0 ? replaced : env;
  const [before, after] = [worker.PORT, values.PORT];
  const isMoved = before !== undefined && after !== undefined && String(before) !== String(after);
  return isMoved ? [String(before), String(after)] : undefined;
}

/// One more worker, as PM2's daemon would make it of this order and the worker's settings. It is given a number of its
/// own, and an instance.
function surplus(worker, env) {
  const Utility = require(path.join(root, 'lib/Utility.js'));
  const copy = (value) => JSON.parse(JSON.stringify(value));
  const [made, order] = [{ pm2_env: copy(worker) }, copy(env)];
  Utility.extend(made.pm2_env.env, order);
  Utility.extendExtraConfig(made, { env: order });
  const { pm_id, created_at, unique_id, ...settings } = made.pm2_env;
  delete settings.env[settings.instance_var ?? 'NODE_APP_INSTANCE'];
  return { ...settings, instances: 1 };
}

/// One stands for all workers of its app.
function needsSurplus(worker) {
  return !found.reload.some(({ surplus }) => surplus?.name === worker.name);
}

function reload(order, done) {
  const id = Number(order.id);
  const worker = workers.find((worker) => worker.pm_id === id)?.pm2_env;
  if (!worker) return done(new Error(`PM2 has no worker ${order.id}`));
  const env = JSON.parse(JSON.stringify(order.env ?? {}));
  keepOwn(worker, env);
  const more = needsSurplus(worker) ? surplus(worker, env) : undefined;
  found.reload.push({ id, env, moved: moved(worker, env), surplus: more });
  done(null, {});
}

function prepare(app, done) {
  found.prepare.push({ name: String(app.name), app });
  done(null, [{ pm2_env: { name: app.name } }]);
}

const later = (act) => (client, order, done = () => {}) => setImmediate(act, order, done);
const ask = (method, seen = () => {}) => (client, order, done) =>
  client.client.call(method, order, (error, answer) => {
    seen(answer);
    done(error, answer);
  });

const methods = {
  getMonitorData: ask('getMonitorData', (list) => (workers = list ?? [])),
  getVersion: ask('getVersion'),
  reloadProcessId: later(reload),
  prepare: later(prepare),
  notifyByProcessId: later((_, done) => done(null)),
};

function intercept(Client) {
  Client.prototype.initFileStructure = () => {};
  Client.prototype.launchDaemon = () => finish(1);
  Client.prototype.start = function (done) {
    this.rpc_socket_file = socket;
    this.launchRPC((error) => done(error, { new_pm2_instance: false }));
  };
  Client.prototype.executeRemote = function (method, order, done) {
    if (Object.hasOwn(methods, method)) return methods[method](this, order, done);
    fail(`pm2 reload asks for ${method}, which it never did`);
    finish(1);
  };
}

/// PM2's agent for its makers' service is not spoken to.
function silence(agent) {
  agent.ping = (_, done) => done(null, false);
  agent.disconnectRPC = (done) => done();
  agent.launchAndInteract = (...all) => all.pop()(null);
}

function listen(Common) {
  const { verifyConfs } = Common;
  const tell = (...message) => {
    const text = stripVTControlCharacters(format(...message));
    if (text.startsWith('[PM2][WARN]')) warn(text);
  };
  Common.lockReload = () => 0;
  Common.unlockReload = () => {};
  Common.printError = Common.err = fail;
  Common.printOut = tell;
  Common.warn = warn;
  Common.verifyConfs = (apps) => {
    const checked = verifyConfs(apps);
    if (checked instanceof Error) fail(checked);
    return checked;
  };
  // The one thing that PM2 tells of a malformed file in no other way.
  console.error = (error) => {
    const last = found.errors.length - 1;
    if (found.errors[last]?.endsWith('malformated') && error instanceof Error) {
      found.errors[last] += `: ${oneLine(error)}`;
    }
  };
}

process.stdout.write = process.stderr.write = () => true;
process.exit = finish;
process.on('beforeExit', () => finish(1));
process.on('uncaughtException', (error) => {
  fail(error);
  finish(1);
});

process.argv = [process.argv[0], path.join(root, 'bin/pm2'), 'reload', ...wanted];
intercept(require(path.join(root, 'lib/Client.js')));
const agent = Object.keys(require.cache).find((file) => file.endsWith('/InteractorClient.js'));
if (agent) silence(require(agent));
listen(require(path.join(root, 'lib/Common.js')));
require(path.join(root, 'lib/API.js')).prototype.exitCli = finish;
require(path.join(root, 'lib/binaries/CLI.js'));
