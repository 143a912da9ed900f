'use strict';

// The sidecar's end of the socket, doing what a test wants.

const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const { until } = require('./until.js');

class Sidecar {
  // `on`: what is done at each message, by its type.
  constructor(test, on = {}) {
    this.directory = fs.mkdtempSync(path.join(os.tmpdir(), 'handoff-sidecar-'));
    this.path = path.join(this.directory, 'preload.sock');
    this.heard = [];
    this.sockets = new Set();
    this.on = on;
    this.server = net.createServer((socket) => this.serve(socket));
    test.after(() => {
      this.stop();
      fs.rmSync(this.directory, { recursive: true, force: true });
    });
  }

  listen() {
    return new Promise((listening) => this.server.listen(this.path, () => listening(this)));
  }

  serve(socket) {
    let text = '';
    this.sockets.add(socket);
    socket.on('error', () => {}).on('close', () => this.sockets.delete(socket));
    socket.setEncoding('utf8').on('data', (data) => {
      const lines = (text + data).split('\n');
      text = lines.pop();
      for (const message of lines.map(JSON.parse)) {
        this.heard.push(message);
        this.on[message.type]?.(message, (answer) => socket.write(`${JSON.stringify(answer)}\n`), socket);
      }
    });
  }

  say(message) {
    for (const socket of this.sockets) socket.write(`${JSON.stringify(message)}\n`);
  }

  of(type) {
    return this.heard.filter((message) => message.type === type);
  }

  hears(type, holds = () => true) {
    return until(`the sidecar hears ${type}`, () => this.of(type).some(holds), () => JSON.stringify(this.heard));
  }

  stop() {
    this.server.close();
    for (const socket of this.sockets) socket.destroy();
  }
}

const acknowledges = { stopping: (_message, answer) => answer({ type: 'ack' }) };

function sidecar(test, on = acknowledges) {
  return new Sidecar(test, on).listen();
}

module.exports = { sidecar };
