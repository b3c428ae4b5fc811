// The steps of the client matrix with ioredis: PORT PROTOCOL as arguments. Prints one line for each
// step, with what the client returned; ends with the reason on stderr when it fails.
'use strict';

const { Redis } = require('ioredis');
const { KEY, PORT, PROTOCOL, WATCHED } = require('./steps.js');
const { counted, restart, run, sorted, step, waitFor } = require('./steps.js');

async function connect(options = {}, onError = () => {}) {
  const client = new Redis({
    host: '127.0.0.1',
    port: PORT,
    username: 'john',
    password: 'matrix-secret',
    protocol: PROTOCOL,
    retryStrategy: () => 20,
    lazyConnect: true,
    ...options,
  });
  // Without a listener the loss of the connection would fill stderr.
  client.on('error', onError);
  await client.connect();
  return client;
}

// The reason is in an event; connect() itself only says that the connection is closed.
async function refused(options) {
  const reasons = [];
  try {
    const onError = (error) => reasons.push(error.message);
    const client = await connect({ ...options, retryStrategy: null }, onError);
    await client.ping();
    return 'let in';
  } catch (error) {
    reasons.push(error.message);
    return reasons.some((text) => /^(WRONGPASS|NOAUTH) /.test(text)) ? 'refused' : reasons;
  }
}

async function select(client) {
  const one = await connect({ db: 1 });
  await one.set('matrix', 'one');
  const [, there, , here] = await Promise.all([
    client.select(1),
    client.get('matrix'),
    client.select(0),
    client.get('matrix'),
  ]);
  step('select', `${await one.get('matrix')}, ${there}, ${here ?? 'nothing'}`);
  one.disconnect();
}

async function pipeline(client) {
  const written = client.pipeline();
  for (let index = 0; index < 100; index += 1) written.hincrby(KEY, 'visits', 1);
  const replies = await written.exec();
  step('pipeline', counted(replies.map(([error, reply]) => error ?? reply)));
}

async function transaction(client) {
  const results = await client
    .multi()
    .hset(KEY, 'username', 'ann')
    .hincrby(KEY, 'visits', 5)
    .set('matrix:other', 'x')
    .exec();
  const [created, visits, done] = results.map(([error, reply]) => error ?? reply);
  const aborted = await client
    .multi()
    .hincrby(KEY, 'visits', 1000)
    .hset(KEY, 'login_count', -1)
    .exec()
    .catch(() => 'aborted');
  const after = await client.hget(KEY, 'visits');
  step('transaction', `${created}, ${visits}, ${done === 'OK'}, ${aborted}, ${after}`);
}

async function watch(client) {
  const other = await connect();
  await client.watch(WATCHED);
  await other.hset(WATCHED, 'username', 'bob');
  const first = await client.multi().hset(WATCHED, 'username', 'ann').exec();
  await client.watch(WATCHED);
  const name = await client.hget(WATCHED, 'username');
  const block = client.multi().hset(WATCHED, 'username', `${name}by`).hget(WATCHED, 'username');
  const [, [, second]] = await block.exec();
  other.disconnect();
  return `${first ?? 'conflict'}, ${second}`;
}

async function publish(client) {
  const subscriber = await connect();
  const texts = [];
  subscriber.on('message', (_, text) => texts.push(text));
  subscriber.on('pmessage', (_pattern, _channel, text) => texts.push(text));
  await subscriber.subscribe('matrix-news');
  await subscriber.psubscribe('matrix-p*');
  const first = await client.publish('matrix-news', 'hello');
  const second = await client.publish('matrix-pattern', 'there');
  await waitFor('two messages', async () => texts.length === 2);
  step('publish', `${first + second}, ${texts.join(', ')}`);
  return { subscriber, texts };
}

async function profile(client) {
  await client.hset(KEY, 'photo', Buffer.from([0, 255, 13, 10]));
  const photo = await client.hgetBuffer(KEY, 'photo');
  await client.hdel(KEY, 'photo');
  await client.hset(KEY, { department: 'Ingénierie' });
  const fields = await client.hgetall(KEY);
  step('profile', sorted(fields));
  step('binary', photo.toString('hex'));
  step('hgetall', Array.isArray(fields) ? 'array' : 'map');
}

run(async () => {
  step('client', `ioredis ${require('ioredis/package.json').version}`);
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
  step('refusal', await client.hset(KEY, 'login_count', -1).catch((error) => error.message));
  await restart();
  step('reconnect', await waitFor('the connection', () => client.hget(KEY, 'visits')));
  await waitFor('the subscription', async () => (await client.publish('matrix-news', 'again')) === 1);
  await waitFor('the message', async () => texts.includes('again'));
  step('resubscribe', texts.at(-1));
  subscriber.disconnect();
});
