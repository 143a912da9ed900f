'use strict';

// Visitors, each with a connection of their own to every worker, who ask and order in turn. Nothing is repeated;
// every answer is kept.

const { setTimeout: sleep } = require('node:timers/promises');
const { Client } = require('./client.js');
const { until } = require('./until.js');

const VISITORS = 8;
const PAUSE = 5;

let loads = 0;

class Load {
  // `choose`: the ports that may be asked now; a request waits where there is none.
  constructor(ports, choose = () => ports) {
    this.answers = [];
    this.number = loads++;
    this.going = true;
    this.choose = choose;
    this.visits = Array.from({ length: VISITORS }, (_, number) => this.visit(number, ports));
  }

  async visit(number, ports) {
    const clients = new Map(ports.map((port) => [port, new Client(port)]));
    for (let turn = number; this.going; turn += 1) {
      let may = this.choose();
      for (; may.length === 0; may = this.choose()) await sleep(PAUSE);
      const port = may[turn % may.length];
      const id = turn % 2 ? `${this.number}-${number}-${turn}` : null;
      const answer = await clients.get(port).ask(id ? `/orders?id=${id}` : '/', id ? 'POST' : 'GET');
      this.answers.push({ ...answer, id, port });
      await sleep(PAUSE);
    }
    clients.forEach((client) => client.end());
  }

  // So many more answers.
  some(count = 100) {
    const seen = this.answers.length;
    const last = () => JSON.stringify(this.answers.at(-1));
    return until('there is traffic', () => this.answers.length >= seen + count, last);
  }

  async end() {
    this.going = false;
    await Promise.all(this.visits);
  }

  get failed() {
    return this.answers.filter(({ status }) => status !== 200);
  }

  // Ids of orders whose execution began, and whose visitor saw a failure.
  failedThoughExecuted(pm2) {
    const begun = new Set(pm2.executed('start'));
    return this.failed.filter(({ id }) => begun.has(id)).map(({ id }) => id);
  }
}

module.exports = { Load };
