'use strict';

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { execFileSync } = require('node:child_process');

// For 127.0.0.1, and for one test run.
function certificate(test) {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'handoff-tls-'));
  test.after(() => fs.rmSync(directory, { recursive: true, force: true }));
  const [KEY, CERT] = ['key.pem', 'cert.pem'].map((name) => path.join(directory, name));
  const kind = ['-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/CN=127.0.0.1'];
  execFileSync('openssl', ['req', ...kind, '-keyout', KEY, '-out', CERT], { stdio: 'ignore' });
  return { KEY, CERT };
}

module.exports = { certificate };
