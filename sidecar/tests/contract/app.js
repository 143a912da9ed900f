'use strict';

// An app that writes down what happens to it: a line of JSON in $FACTS for its start, for `ready`, and for SIGINT. While
// there is a file $FACTS.broken it ends as it starts, with $FACTS.dying a little later, and with $FACTS.mute it never says
// `ready`.

const { appendFileSync, existsSync } = require('node:fs');

const { FACTS, STUBBORN, PORT, NODE_APP_INSTANCE, V, HOME } = process.env;

function note(what) {
  const worker = Number(process.env.pm_id);
  const fact = { what, at: Date.now(), worker, port: PORT, instance: NODE_APP_INSTANCE, v: V, home: HOME };
  appendFileSync(FACTS, `${JSON.stringify(fact)}\n`);
}

process.on('SIGINT', () => {
  note('SIGINT');
  if (!STUBBORN) process.exit(0);
});

note('start');
if (existsSync(`${FACTS}.broken`)) process.exit(1);
if (existsSync(`${FACTS}.dying`)) setTimeout(() => process.exit(1), 300);
setTimeout(() => {
  if (existsSync(`${FACTS}.mute`)) return;
  note('ready');
  process.send('ready');
}, 50);
setInterval(() => {}, 1000);
