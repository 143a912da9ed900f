// Says no `ready`, handles no signal, and answers whatever it is asked.
require('node:http').createServer((req, res) => res.end('ok')).listen(process.env.PORT, '127.0.0.1');
