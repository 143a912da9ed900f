'use strict';

// What befalls a worker of its own accord; loaded into it before the application.
//
// SIGUSR2     it needs more memory than it may have.
// SIGHUP      it throws.
// CRASH_FILE  as long as this file names its port, among others, it throws when it boots.
// LATE_FILE   as long as this file is there, it does not begin.
// FIRST_PORT  its port is this one and NODE_APP_INSTANCE more.

const fs = require('node:fs');

const MUCH = 250 * 1024 * 1024;

if (process.env.FIRST_PORT) {
  process.env.PORT = String(Number(process.env.FIRST_PORT) + Number(process.env.NODE_APP_INSTANCE));
}

const late = process.env.LATE_FILE;
while (late && fs.existsSync(late)) {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
}

let memory;
process.on('SIGUSR2', () => {
  memory = Buffer.alloc(MUCH, 1);
});

process.on('SIGHUP', () => {
  throw new Error('this worker was told to throw');
});

const crash = process.env.CRASH_FILE;
if (fs.existsSync(crash) && fs.readFileSync(crash, 'utf8').split(' ').includes(process.env.PORT)) {
  throw new Error('this worker throws when it boots');
}
