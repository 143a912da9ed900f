'use strict';

// A client that keeps one connection alive, as nginx does, and says what became of a request. It repeats nothing.

const http = require('node:http');

const HUNG = 4000;

class Client {
  constructor(port) {
    this.port = port;
    this.agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  }

  // Resolves to { status, connection, body } or { error }.
  ask(path, method = 'GET') {
    return new Promise((done) => {
      const options = { host: '127.0.0.1', port: this.port, path, method, agent: this.agent };
      const failed = (error) => done({ error: error.code ?? error.message, reused: request.reusedSocket });
      const request = http.request(options, (response) => {
        let body = '';
        response.setEncoding('utf8').on('data', (text) => (body += text));
        response.on('error', failed);
        response.on('end', () => done({ status: response.statusCode, connection: response.headers.connection, body }));
      });
      request.setTimeout(HUNG, () => request.destroy(new Error('hung')));
      request.on('error', failed).end();
    });
  }

  get hasConnection() {
    const sockets = [...Object.values(this.agent.freeSockets), ...Object.values(this.agent.sockets)].flat();
    return sockets.length > 0;
  }

  end() {
    this.agent.destroy();
  }
}

module.exports = { Client };
