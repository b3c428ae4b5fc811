// The steps of the client matrix with node-redis: PORT PROTOCOL as arguments. Prints one line for
// each step, with what the client returned; ends with the reason on stderr when it fails.
'use strict';

const { createClient, RESP_TYPES, WatchError } = require('redis');
const { KEY, PORT, PROTOCOL, WATCHED } = require('./steps.js');
const { counted, restart, run, sorted, step, waitFor } = require('./steps.js');

async function connect(options = {}) {
  const client = createClient({
    username: 'john',
    password: 'matrix-secret',
    RESP: PROTOCOL,
    socket: { host: '127.0.0.1', port: PORT, reconnectStrategy: () => 20 },
    ...options,
  });
  // Without a listener the loss of the connection would end the program.
  client.on('error', () => {});
  await client.connect();
  return client;
}

async function refused(options) {
  const socket = { host: '127.0.0.1', port: PORT, reconnectStrategy: false };
  try {
    const client = await connect({ ...options, socket });
    await client.ping();
    return 'let in';
  } catch (error) {
    return /^(WRONGPASS|NOAUTH) /.test(error.message) ? 'refused' : error;
  }
}

async function select(client) {
  const one = await connect({ database: 1 });
  await one.set('matrix', 'one');
  const [, there, , here] = await Promise.all([
    client.select(1),
    client.get('matrix'),
    client.select(0),
    client.get('matrix'),
  ]);
  step('select', `${await one.get('matrix')}, ${there}, ${here ?? 'nothing'}`);
  one.destroy();
}

async function pipeline(client) {
  const calls = Array.from({ length: 50 }, () => client.hIncrBy(KEY, 'visits', 1));
  const written = client.multi();
  for (let index = 0; index < 50; index += 1) written.hIncrBy(KEY, 'visits', 1);
  const replies = [...(await Promise.all(calls)), ...(await written.execAsPipeline())];
  step('pipeline', counted(replies));
}

async function transaction(client) {
  const [created, visits, done] = await client
    .multi()
    .hSet(KEY, 'username', 'ann')
    .hIncrBy(KEY, 'visits', 5)
    .set('matrix:other', 'x')
    .exec();
  const aborted = await client
    .multi()
    .hIncrBy(KEY, 'visits', 1000)
    .hSet(KEY, 'login_count', -1)
    .exec()
    .catch(() => 'aborted');
  const after = await client.hGet(KEY, 'visits');
  step('transaction', `${created}, ${visits}, ${done === 'OK'}, ${aborted}, ${after}`);
}

async function watch(client) {
  const other = await connect();
  await client.watch(WATCHED);
  await other.hSet(WATCHED, 'username', 'bob');
  const first = await client
    .multi()
    .hSet(WATCHED, 'username', 'ann')
    .exec()
    .catch((error) => (error instanceof WatchError ? 'conflict' : error));
  await client.watch(WATCHED);
  const name = await client.hGet(WATCHED, 'username');
  const block = client.multi().hSet(WATCHED, 'username', `${name}by`).hGet(WATCHED, 'username');
  const [, second] = await block.exec();
  other.destroy();
  return `${first}, ${second}`;
}

async function publish(client) {
  const subscriber = await connect();
  const texts = [];
  await subscriber.subscribe('matrix-news', (text) => texts.push(text));
  await subscriber.pSubscribe('matrix-p*', (text) => texts.push(text));
  const first = await client.publish('matrix-news', 'hello');
  const second = await client.publish('matrix-pattern', 'there');
  await waitFor('two messages', async () => texts.length === 2);
  step('publish', `${first + second}, ${texts.join(', ')}`);
  return { subscriber, texts };
}

async function profile(client) {
  await client.hSet(KEY, 'photo', Buffer.from([0, 255, 13, 10]));
  const binary = client.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer });
  const photo = await binary.hGet(KEY, 'photo');
  await client.hDel(KEY, 'photo');
  await client.hSet(KEY, { department: 'Ingénierie' });
  step('profile', sorted(await client.hGetAll(KEY)));
  step('binary', photo.toString('hex'));
  step('hgetall', Array.isArray(await client.sendCommand(['HGETALL', KEY])) ? 'array' : 'map');
}

run(async () => {
  step('client', `node-redis ${require('redis/package.json').version}`);
  const [wrong, without] = [{ password: 'wrong' }, { username: undefined, password: undefined }];
  const client = await connect();
  const pong = (await client.ping()) === 'PONG';
  step('authenticate', `${await refused(wrong)}, ${await refused(without)}, ${pong}`);
  await select(client);
  await pipeline(client);
  await transaction(client);
  step('watch', await watch(client).catch(() => 'refused'));
  const { subscriber, texts } = await publish(client);
  await profile(client);
  step('refusal', await client.hSet(KEY, 'login_count', -1).catch((error) => error.message));
  await restart();
  step('reconnect', await waitFor('the connection', () => client.hGet(KEY, 'visits')));
  await waitFor('the subscription', async () => (await client.publish('matrix-news', 'again')) === 1);
  await waitFor('the message', async () => texts.includes('again'));
  step('resubscribe', texts.at(-1));
  subscriber.destroy();
});
