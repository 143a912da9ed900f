'use strict';

// PM2's list, again and again, without starting a command line for each: a line of JSON for every line of input.
// Only what is named here leaves this process: the list holds the apps' whole environments.
//
//   node list.cjs <PM2's package>

const pm2 = require(process.argv[2]);

function isAlive(pid) {
  try {
    return pid > 0 && process.kill(pid, 0);
  } catch {
    return false;
  }
}

function worker({ pm_id: id, name, pid, pm2_env: env }) {
  return {
    id,
    name,
    pid,
    is_alive: isAlive(pid),
    status: env.status,
    started: env.pm_uptime,
    restarts: env.restart_time,
    instance: Number(env.NODE_APP_INSTANCE),
    port: env.PORT === undefined ? null : Number(env.PORT),
  };
}

pm2.connect((error) => {
  if (error) throw error;
  process.stdin.on('data', () => {
    pm2.list((error, list) => {
      if (error) throw error;
      process.stdout.write(`${JSON.stringify(list.map(worker))}\n`);
    });
  });
  process.stdin.on('end', () => process.exit(0));
});
