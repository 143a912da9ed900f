'use strict';

// What the tested apps serve:   / at once · /hold when the test says so · /stream its process, and a last word when
// the test says so · POST /orders?id after a while, with a line in ORDERS when its execution starts, and where, and one
// when it is done.

const fs = require('node:fs');

const ORDER_WORK = 50;

const held = new Set();
const file = process.env.ORDERS && fs.openSync(process.env.ORDERS, 'a');
const order = (what, id) => fs.writeSync(file, `${what} ${id} ${process.pid}\n`);

function hold(response, last) {
  held.add(() => response.end(last));
  process.send?.('held');
}

function release() {
  for (const answer of held) answer();
  held.clear();
}

function serve(request, response) {
  const { pathname, searchParams } = new URL(request.url, 'http://localhost');
  const id = searchParams.get('id');
  request.resume();
  switch (pathname) {
    case '/hold':
      return hold(response, 'held');
    case '/stream':
      response.write(`${process.pid}\n`);
      return hold(response, 'last');
    case '/orders':
      order('start', id);
      return setTimeout(() => {
        order('done', id);
        response.end(id);
      }, ORDER_WORK);
    default:
      return response.end(String(process.pid));
  }
}

// Tells the test what happens here.
function say(word) {
  process.send?.(word);
}

// The test says `release` through a file: a listener for messages would be one that the app has.
function releaseWhen(path) {
  const timer = setInterval(() => {
    if (!fs.existsSync(path)) return;
    clearInterval(timer);
    release();
  }, 5);
  timer.unref();
}

if (process.env.RELEASE) releaseWhen(process.env.RELEASE);

module.exports = { hold, say, serve };
