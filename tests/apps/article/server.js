// The same guide's application, with a database that is always there.
const express = require('express');
const { setTimeout: sleep } = require('node:timers/promises');

const app = express();
const db = { query: () => sleep(1) };

app.get('/', (req, res) => res.json({ ok: true }));

app.get('/health', async (req, res) => {
  try {
    await db.query('SELECT 1');
    res.status(200).json({ status: 'ok', pid: process.pid, uptime: process.uptime() });
  } catch (err) {
    res.status(503).json({ status: 'error', error: err.message });
  }
});

async function start() {
  await sleep(200);
  const server = app.listen(process.env.PORT || @port@, () => {
    if (process.send) {
      process.send('ready');
    }
  });
  const shutdown = () => {
    server.close(() => process.exit(0));
    setTimeout(() => process.exit(1), 7000);
  };
  process.on('SIGINT', shutdown);
  process.on('SIGTERM', shutdown);
}

start();
