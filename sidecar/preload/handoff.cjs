'use strict';

// Handoff's preload: a worker says goodbye before it goes.        node_args: '-r /path/to/handoff.cjs'
//
// On SIGINT, SIGTERM or PM2's `shutdown` message, in a process that listens:
//
//   1. the sidecar is told, and nginx no longer sends requests here when it answers; a sidecar that is not there costs
//      nothing, a slow one half a second at most, and one that says so more: until others serve. Workers that share an address leave it to the others: at once with
//      `wait_ready`, else as late, for PM2 may have stopped the others, too. From here on every answer says
//      `Connection: close`, HTTP/2 says GOAWAY.
//   2. the app's own handlers run, as they would have. A `process.exit()` of theirs is held until what is in flight is
//      answered: it returns, and the process exits later, with that code. A second signal ends the wait.
//   3. without a handler: what is in flight is finished, and the process ends by the very signal it was sent: whoever
//      waits for it sees what he would have seen without us.
//
// All of it ends before PM2's kill_timeout does. `drain` from the sidecar is step 1 without an end.
// And when the sidecar has said what PM2 calls this worker, every answer says so, for nginx's log.
// Nothing happens in a process that does not listen, or that PM2 did not start. No listener is added to the process.
// The words on the socket, and what this cannot do: docs/api/preload.md.

const net = require('node:net');
const http = require('node:http');
const os = require('node:os');
const { isMainThread } = require('node:worker_threads');

const VERSION = 1;
const SIGNALS = new Set(['SIGINT', 'SIGTERM']);

const PM2_KILL_TIMEOUT = 1600;
const LONGEST_WAIT = 500; // for the sidecar's answer
const SETTLE = 50; // for what nginx had sent before it knew
const LONGEST_IDLE = 1000; // for one more request on a connection that nginx may still use
const LONGEST_QUEUE = 500; // for connections that were made, and that nobody has taken yet, if more may come
const FRESH = 250; // for the first request on a connection that was just made
const ECHO = 500; // `npm start` passes on the signal that PM2 has sent to the whole tree
const DISCONNECT = 100; // for the cluster's primary to take back what it was handing over
const TICK = 25;
const READY = 300; // for an app that says `ready` itself
const REPORT = 100; // between two counts
const RECONNECT = { first: 1000, last: 30_000 };
const LONGEST_LINE = 4096;
const LONGEST_NAME = 128;
const MOST_LISTENS = 16;

const noop = () => {};
const now = () => performance.now();

// A turn of the event loop begins with its timers, and only then reads. After a while without a CPU all times are over, and what
// came meanwhile is still unread: what a timer decides is decided when it has been. Gives back who calls it off.
function later(pause, then) {
  let due;
  const timer = setTimeout(() => (due = setImmediate(then)), pause);
  return () => {
    clearTimeout(timer);
    clearImmediate(due);
  };
}

// === What PM2 says of this process ===

function isWanted() {
  const { HANDOFF_PRELOAD, pm_id, pm2_env } = process.env;
  if (HANDOFF_PRELOAD === 'off' || !isMainThread || process.platform === 'win32') return false;
  if (/\/pm2[^/]*\/lib\/Daemon\.js$/.test(process.argv[1])) return false;
  // In cluster mode PM2 sets pm_id later, from pm2_env.
  return HANDOFF_PRELOAD === 'on' || pm_id !== undefined || pm2_env !== undefined;
}

// Read when they are needed: see above.
function settings() {
  const { kill_timeout, PM2_KILL_TIMEOUT: ofDaemon, exec_mode, pm_id, wait_ready } = process.env;
  const killTimeout = Number(kill_timeout) || Number(ofDaemon) || PM2_KILL_TIMEOUT;
  const cluster = require('node:cluster');
  return {
    // An app that makes a cluster of its own, in fork mode, is told to stop as a whole.
    shared: cluster.isWorker && exec_mode !== 'fork_mode',
    // Without `ready`, PM2 stops the next worker before the last one listens again.
    othersServe: wait_ready === 'true',
    pmId: pm_id,
    wait: Math.min(LONGEST_WAIT, killTimeout / 4),
    idle: Math.min(LONGEST_IDLE, killTimeout / 2),
    // While nobody else serves. The rest is for what is in flight.
    patience: killTimeout / 2,
    deadline: killTimeout - Math.min(1000, Math.max(100, killTimeout / 8)),
  };
}

// === What is in flight: responses, HTTP/2 streams, sockets that were upgraded ===

const inFlight = new Set();
const known = new WeakSet();

// On the path of every request: no closure, no wrapper.
function begin(work, socket) {
  inFlight.add(work);
  work.on('close', end);
  if (socket && !known.has(socket)) {
    known.add(socket);
    socket.on('close', endQueue);
  }
  if (closing) report();
}

function end() {
  inFlight.delete(this);
  if (closing) report();
}

// A pipelined response whose turn never came does not hear of it when its connection ends.
function endQueue() {
  for (const work of inFlight) if (work.req?.socket === this) end.call(work);
}

// === Where we listen ===

const servers = new Set();
const sessions = new Set(); // HTTP/2
let arrived = 0; // connections
let closing = false; // connections end with the answer that is due on them
let idleIsSafe = Infinity; // from this moment on nginx sends nothing on an idle connection, or has had its time

function lastOn(response) {
  if (!response.headersSent) response.shouldKeepAlive = false;
}

function closeConnections(safe) {
  closing = true;
  idleIsSafe = safe;
  for (const work of inFlight) if (work instanceof http.ServerResponse) lastOn(work);
  for (const session of sessions) session.close();
  servers.forEach(guardIdle);
}

// Since Node 19 `server.close()` cuts idle connections, even those on which a request is on its way.
function guardIdle(server) {
  const { closeIdleConnections } = server;
  if (!closeIdleConnections || Object.hasOwn(server, 'closeIdleConnections')) return;
  const value = function () {
    if (!closing || now() >= idleIsSafe) closeIdleConnections.call(this);
  };
  Object.defineProperty(server, 'closeIdleConnections', { value, configurable: true, writable: true });
}

function sweep() {
  if (now() >= idleIsSafe) for (const server of servers) server.closeIdleConnections?.();
}

// The handle only: for the app the server goes on listening, and is there to be closed by its own handlers.
function closeListeners() {
  for (const { _handle: handle } of servers) {
    if (!handle) continue;
    const name = {};
    handle.getsockname?.(name);
    handle.close();
    if (handle.getsockname && name.address) handle.getsockname = (out) => (Object.assign(out, name), 0);
  }
}

function countOpen(then) {
  const listening = [...servers].filter((server) => server.closeIdleConnections);
  let open = sessions.size;
  let left = listening.length;
  if (left === 0) return then(open);
  const add = (_error, count) => {
    open += count ?? 0;
    left -= 1;
    if (left === 0) then(open);
  };
  for (const server of listening) server.getConnections(add);
}

function listens() {
  const places = [...servers].map((server) => server.address()).filter(Boolean);
  const place = (at) => (typeof at === 'string' ? { path: at } : { address: at.address, port: at.port });
  return places.slice(0, MOST_LISTENS).map(place);
}

// Every server of Node inherits this one `emit`; whatever happens to a server passes here, before the app sees it.
function watch(server, type, first, second) {
  switch (type) {
    case 'listening':
      servers.add(server);
      return arm();
    case 'close':
      return servers.delete(server);
    case 'connection':
      arrived += 1;
      return;
    case 'request':
    case 'checkContinue':
    case 'checkExpectation':
      // An HTTP/2 request was counted as a stream.
      if (!(second instanceof http.ServerResponse)) return;
      if (closing) lastOn(second);
      return inFlight.has(second) || begin(second, first.socket);
    case 'connect':
    case 'upgrade':
      return begin(second);
    case 'stream':
      return begin(first);
    case 'session':
      sessions.add(first);
      first.once('close', () => sessions.delete(first));
      if (closing) first.close();
  }
}

function watchServers({ prototype }) {
  const { emit } = prototype;
  const value = function (type, first, second) {
    try {
      watch(this, type, first, second);
    } catch {
      // An error of ours must not become the app's.
    }
    return emit.apply(this, arguments);
  };
  Object.defineProperty(prototype, 'emit', { value, configurable: true, writable: true });
}

// Nor here.
function attempt(what, ...args) {
  try {
    return what(...args);
  } catch {
    return undefined;
  }
}

// === Who answers ===

let signature = ''; // a line in the head of every answer
let signs = false; // since the first name

// PM2 may rename a worker: without a sidecar to tell us, it has no name.
function sign(name) {
  const isName = typeof name === 'string' && name !== '';
  if (isName && !signs) signAnswers(http.ServerResponse);
  signature = isName ? `X-Handoff-Worker: ${spell(name)}\r\n` : '';
}

// Behind the status line. There no call of the app's meets it: the headers that it sets, removes, counts or writes are
// what they would have been. With one that was set before, Node refuses some ways to write them, and is slow in all.
function signAnswers({ prototype }) {
  signs = true;
  const { _storeHeader } = prototype;
  if (typeof _storeHeader !== 'function') return;
  const value = function (statusLine, headers) {
    return _storeHeader.call(this, statusLine + signature, headers);
  };
  Object.defineProperty(prototype, '_storeHeader', { value, configurable: true, writable: true });
}

// Visible ASCII stays, but for the sign of what does not. Of a name that is too long its end: it tells workers apart.
function spell(name) {
  const escape = (char) => Buffer.from(char).toString('hex').toUpperCase().replace(/../g, '%$&');
  let text = '';
  for (const char of [...name].reverse()) {
    const part = /[!-$&-~]/.test(char) ? char : escape(char);
    if (text.length + part.length > LONGEST_NAME) break;
    text = part + text;
  }
  return text;
}

// === The sidecar ===

const link = {
  socket: null,
  open: false,
  heard: '',
  connected: noop,
  answer: noop,
  extend: noop,
  retry: RECONNECT.first,
  timer: null,
};

function places() {
  const { HANDOFF_PRELOAD_SOCKET, XDG_RUNTIME_DIR } = process.env;
  if (HANDOFF_PRELOAD_SOCKET) return [HANDOFF_PRELOAD_SOCKET];
  const own = XDG_RUNTIME_DIR ? [`${XDG_RUNTIME_DIR}/handoff/preload.sock`] : [];
  // Where `handoff@USER` listens. The other one is not for everybody to enter.
  const service = attempt(() => [`/run/handoff-${os.userInfo().username}/preload.sock`]) ?? [];
  return [...service, '/run/handoff/preload.sock', ...own];
}

function connect(candidates = places()) {
  if (link.socket) return;
  clearTimeout(link.timer);
  const [path, ...others] = candidates;
  const socket = net.connect({ path }).unref().setEncoding('utf8');
  Object.assign(link, { socket, heard: '' });
  socket.on('connect', () => attempt(greet));
  socket.on('data', hear);
  socket.on('error', noop);
  socket.on('close', () => {
    const wasOpen = link.open;
    Object.assign(link, { socket: null, open: false });
    sign(null);
    if (!wasOpen && others.length > 0) return attempt(connect, others);
    link.answer(false);
    link.timer = setTimeout(attempt, link.retry, connect).unref();
    link.retry = Math.min(2 * link.retry, RECONNECT.last);
  });
}

function greet() {
  Object.assign(link, { open: true, retry: RECONNECT.first });
  const { shared, pmId } = settings();
  const mode = shared ? 'cluster' : 'fork';
  say({ type: 'hello', v: VERSION, pid: process.pid, pm_id: pmId, mode, listens: listens() });
  link.connected();
}

function say(message) {
  if (link.open && link.socket.writableLength < LONGEST_LINE) link.socket.write(`${JSON.stringify(message)}\n`);
}

function hear(text) {
  const lines = (link.heard + text).split('\n');
  link.heard = lines.pop();
  if (link.heard.length > LONGEST_LINE) return link.socket.destroy();
  for (const line of lines) attempt(obey, line);
}

function obey(line) {
  const message = JSON.parse(line);
  if (message.type === 'ack') link.answer(true);
  if (message.type === 'nack') link.answer(false);
  if (message.type === 'wait') link.extend(Number(message.ms));
  if (message.type === 'drain') drain(Number(message.deadline_ms));
  if (message.type === 'name') sign(message.name);
}

// Calls back once: with true when the sidecar says that nginx knows. It may ask for more time than `wait`.
function tell(message, { wait, patience }, then) {
  const none = () => link.answer(false);
  let callOff = later(wait, none);
  link.answer = (told) => {
    callOff();
    link.answer = link.extend = link.connected = noop;
    then(told);
  };
  link.extend = (ms) => {
    if (!(ms > 0)) return;
    callOff();
    const longer = Math.min(ms, patience);
    idleIsSafe = now() + longer + SETTLE;
    callOff = later(longer, none);
  };
  link.connected = () => say(message);
  link.open ? say(message) : connect();
}

let reporting = null;

// At most ten counts a second, and only to who asked.
function report() {
  if (reporting) return;
  reporting = setTimeout(() => {
    reporting = null;
    say({ type: 'in_flight', n: inFlight.size });
  }, inFlight.size === 0 ? 0 : REPORT).unref();
}

let draining = null;

// One way where the address is shared: who was drained is to be stopped.
function drain(deadline) {
  if (stop || !(deadline > 0)) return;
  const { shared, idle } = settings();
  if (shared) closeListeners();
  closeConnections(now() + idle);
  clearInterval(draining?.sweeper);
  clearTimeout(draining?.end);
  draining = { sweeper: setInterval(setImmediate, TICK, sweep).unref() };
  if (!shared) draining.end = setTimeout(endDrain, Math.min(deadline, 2 ** 31 - 1)).unref();
  say({ type: 'in_flight', n: inFlight.size });
}

function endDrain() {
  if (stop) return;
  clearInterval(draining.sweeper);
  closing = false;
  idleIsSafe = Infinity;
}

// === Stopping ===

const emit = process.emit;
const exit = process.exit;
const kill = process.kill;

let armed = false;
let crashed = false;
// null, or { at, settings, pending, seen: the signals; leavesAt, left: the address; handed: to the app's handlers;
// leave: how it ends; going, hurried }
let stop = null;

function arm() {
  say({ type: 'listening', listens: listens() });
  if (armed) return;
  armed = true;
  SIGNALS.forEach(keepListening);
  connect();
  sayReady();
}

// What Node does when a first listener is added. Nobody sees one, and no app that counts listeners counts us.
function keepListening(signal) {
  emit.call(process, 'newListener', signal, noop);
}

function sayReady() {
  const { wait_ready, HANDOFF_PRELOAD_READY } = process.env;
  if (wait_ready !== 'true' || HANDOFF_PRELOAD_READY === 'off' || !process.connected) return;
  const { send } = process;
  let said = false;
  process.send = function (message) {
    said ||= message === 'ready';
    return send.apply(this, arguments);
  };
  const sendReady = () => said || !process.connected || attempt(() => process.send('ready', undefined, undefined, noop));
  setTimeout(sendReady, READY).unref();
}

// Whether an event is kept from the app, for now or for good.
function intercept(type, args) {
  if (type === 'uncaughtException') crashed = true;
  if (!armed) return false;
  if (SIGNALS.has(type)) return isHeldBack(type, args);
  if (type === 'message' && args[0] === 'shutdown' && !stop?.handed) return begins(type, args);
  return false;
}

function isHeldBack(signal, args) {
  // An app that emits it itself, and to nobody. The system sends a number along.
  if (args[1] === undefined && process.listenerCount(signal) === 0) return false;
  if (!stop?.handed) return begins(signal, args);
  const isEcho = now() - stop.at < ECHO;
  const isFirst = !stop.seen.has(signal);
  stop.seen.add(signal);
  if (isEcho) return !isFirst || process.listenerCount(signal) === 0;
  stop.hurried = true;
  if (stop.leave) return goNow(), true;
  if (process.listenerCount(signal) > 0) return false;
  return raise(signal), true;
}

function begins(type, args) {
  const isNew = !stop;
  stop ??= { at: now(), settings: settings(), leavesAt: Infinity, pending: new Map(), seen: new Set() };
  if (!stop.seen.has(type)) stop.pending.set(type, args);
  stop.seen.add(type);
  if (!isNew) {
    if (now() - stop.at >= ECHO) link.answer(false);
    return true;
  }
  try {
    sayGoodbye(type);
  } catch {
    setImmediate(handOver);
  }
  return true;
}

function sayGoodbye(signal) {
  const { shared, othersServe, wait, idle, patience } = stop.settings;
  if (shared) stop.leavesAt = stop.at + (othersServe ? 0 : wait);
  closeConnections(stop.at + idle);
  leaveAddress();
  const message = { type: 'stopping', signal, in_flight: inFlight.size, wait_ms: wait };
  tell(message, { wait, patience }, (told) => {
    if (told) idleIsSafe = now() + SETTLE;
    if (told && shared) stop.leavesAt = Math.min(stop.leavesAt, now());
    if (shared && !told) return handOver();
    takeIn(told ? SETTLE : 0, told ? stop.at + patience : now() + LONGEST_QUEUE);
  });
}

// Whoever closes the address cuts what waits there with the kernel: after a while without a CPU, or stopped, that is much.
// A turn takes in one connection at least, if there is any, and reads those that the last one took in.
function takeIn(pause, until) {
  const before = arrived;
  later(pause, () => (arrived === before || now() >= until ? handOver() : takeIn(0, until)));
}

function handOver() {
  if (stop.handed) return;
  stop.handed = true;
  stop.ticking = setInterval(setImmediate, TICK, tick).unref();
  if (stop.leave) return stop.ticking.ref();
  const handled = [...stop.pending].filter(([type]) => process.listenerCount(type) > 0);
  if (handled.length === 0) {
    const [[signal]] = stop.pending;
    return leave(() => raise(signal));
  }
  // What a handler throws is the app's, as ever.
  for (const [type, args] of handled) emit.call(process, type, ...args);
}

function leaveAddress() {
  if (stop.left || now() < stop.leavesAt) return;
  stop.left = true;
  closeListeners();
}

function tick() {
  leaveAddress();
  sweep();
  if (!stop.leave) return;
  if (now() - stop.at >= stop.settings.deadline) return goNow();
  const listens = servers.size > 0 && !stop.left;
  if (listens || inFlight.size > 0 || hasWorkers()) return;
  countOpen((open) => {
    if (open === 0 || now() >= idleIsSafe + FRESH) goNow();
  });
}

// The primary of a cluster that the app itself has made.
function hasWorkers() {
  return Object.keys(require('node:cluster').workers ?? {}).length > 0;
}

// The first reason to end is the one that counts.
function leave(how) {
  if (stop.leave) return;
  stop.leave = how;
  if (!stop.settings.shared) stop.leavesAt = now();
  stop.ticking?.ref();
}

function goNow() {
  if (stop.going) return;
  stop.going = true;
  stop.leavesAt = 0;
  leaveAddress();
  clearInterval(stop.ticking);
  say({ type: 'done' });
  const { worker } = require('node:cluster');
  if (!worker?.isConnected() || stop.hurried) return stop.leave();
  // What the primary was just handing to this worker, it then gives to another one.
  const go = () => {
    clearTimeout(timer);
    stop.leave();
  };
  const timer = setTimeout(go, DISCONNECT);
  worker.once('disconnect', go);
  worker.disconnect();
}

// The default action of a signal.
function raise(signal) {
  armed = false;
  if (!SIGNALS.has(signal)) return exit.call(process, 0);
  process.removeAllListeners(signal);
  emit.call(process, 'removeListener', signal, noop);
  kill.call(process, process.pid, signal);
  // The first process of a container survives that.
  setTimeout(() => exit.call(process, 128 + os.constants.signals[signal]), DISCONNECT);
}

function holdsExit() {
  if (!armed || !stop || crashed || stop.hurried || stop.going) return false;
  if (now() - stop.at >= stop.settings.deadline) return false;
  return inFlight.size > 0 || stop.settings.shared;
}

function replace(name, value) {
  Object.defineProperty(process, name, { value, configurable: true, writable: true, enumerable: true });
}

function watchProcess() {
  replace('emit', function (type, ...args) {
    if (intercept(type, args)) return process.listenerCount(type) > 0;
    const result = emit.apply(this, arguments);
    // Node gives a signal back to the system with its last listener.
    if (type === 'removeListener' && armed && SIGNALS.has(args[0])) keepListening(args[0]);
    return result;
  });
  replace('exit', function (...args) {
    if (!holdsExit()) return exit.apply(this, args);
    leave(() => exit.apply(process, args));
  });
  // "Now that I have cleaned up, let the signal do what it does."
  replace('kill', function (pid, signal = 'SIGTERM') {
    const name = typeof signal === 'number' ? [...SIGNALS].find((name) => os.constants.signals[name] === signal) : signal;
    const isEnd = pid === process.pid && SIGNALS.has(name) && stop?.handed && process.listenerCount(name) === 0;
    if (!isEnd || !armed || stop.hurried) return kill.apply(this, arguments);
    leave(() => raise(name));
    return true;
  });
  // Listeners that were here before us: Node remembers the `emit` that it saw with the first of them.
  for (const signal of SIGNALS) {
    const listeners = process.rawListeners(signal);
    listeners.forEach((listener) => process.removeListener(signal, listener));
    listeners.forEach((listener) => process.on(signal, listener));
  }
}

function load() {
  const loaded = Symbol.for('handoff.preload');
  if (process[loaded] || !isWanted()) return;
  Object.defineProperty(process, loaded, { value: VERSION });
  watchServers(net.Server);
  // Another preload may have put an `emit` of its own in between.
  const others = process.moduleLoadList?.includes('NativeModule https') ? [http, require('node:https')] : [http];
  for (const { Server } of others) if (Object.hasOwn(Server.prototype, 'emit')) watchServers(Server);
  watchProcess();
}

attempt(load);
