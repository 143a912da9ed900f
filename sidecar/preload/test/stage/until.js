'use strict';

const LIMIT = 15_000;
const PAUSE = 5;

async function until(what, holds, details = () => '') {
  const limit = performance.now() + LIMIT;
  while (!(await holds())) {
    if (performance.now() > limit) throw new Error(`waited in vain until ${what}; ${details()}`);
    await new Promise((done) => setTimeout(done, PAUSE));
  }
}

module.exports = { until };
