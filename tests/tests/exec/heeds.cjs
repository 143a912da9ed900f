'use strict';

// An app that ends at PM2's word, and at once.
process.on('message', (message) => {
  if (message === 'shutdown') process.exit(0);
});
