// What the two JavaScript programs of the client matrix share: the lines they print, and the wait
// for the restart of the proxy.
'use strict';

const readline = require('node:readline');

const KEY = 'user:MATRIX';
const WATCHED = 'user:WATCHED';
const PORT = Number(process.argv[2]);
const PROTOCOL = Number(process.argv[3]);

function step(name, outcome) {
  process.stdout.write(`${name}: ${outcome}\n`);
}

// Fields in the order of their names: Redis promises none.
function sorted(fields) {
  const entries = Object.entries(fields).map(([name, value]) => [name, String(value)]);
  return JSON.stringify(Object.fromEntries(entries.sort(([one], [other]) => (one < other ? -1 : 1))));
}

// Asks the test to start the proxy anew, and waits until it has.
async function restart() {
  process.stdout.write('restart\n');
  const lines = readline.createInterface({ input: process.stdin });
  await new Promise((resolve) => lines.once('line', resolve));
  lines.close();
}

// Polls until `probe` returns something; an error counts as nothing yet.
async function waitFor(what, probe) {
  const end = Date.now() + 10_000;
  while (Date.now() < end) {
    const value = await probe().catch(() => undefined);
    if (value !== undefined && value !== null && value !== false) return value;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`gave up waiting for ${what}`);
}

function counted(replies) {
  const expected = Array.from({ length: 100 }, (_, index) => index + 1);
  return JSON.stringify(replies) === JSON.stringify(expected) ? '1 to 100' : replies;
}

function run(steps) {
  steps().then(
    () => process.exit(0),
    (error) => {
      process.stderr.write(`${error.stack}\n`);
      process.exit(1);
    },
  );
}

module.exports = { KEY, PORT, PROTOCOL, counted, restart, run, sorted, step, waitFor, WATCHED };
