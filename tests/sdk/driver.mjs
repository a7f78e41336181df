// Runs clients of the JavaScript SDK for tests/test_sdk.py: commands come as JSON lines, events go as JSON lines.
// argv: the folder of the packages, the package, the form (json or protobuf).
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const [folder, name, form] = process.argv.slice(2);
const require = createRequire(`${folder}/`);
const { Centrifuge, UnauthorizedError } = require(form === 'protobuf' ? `${name}/build/protobuf` : name);
const ws = require('ws');

// As in a browser: no two messages in one tick. Before 5.8.0 the SDK would deliver them out of order.
class BrowserLike extends ws {
  constructor(url, protocols) {
    super(url, protocols, { allowSynchronousEvents: false });
  }
}
const websocket = name === 'centrifuge-before' ? BrowserLike : ws;

const clients = {};
const waiting = {};
const encode = (data) => (form === 'protobuf' ? new TextEncoder().encode(JSON.stringify(data)) : data);
const decode = (data) => (data instanceof Uint8Array ? JSON.parse(new TextDecoder().decode(data)) : data);

function plain(value) {
  if (value instanceof Uint8Array) return value.length ? decode(value) : null;
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, inner]) => [key, plain(inner)]));
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value === 'bigint') return Number(value);
  if (value && typeof value === 'object') {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, plain(inner)]));
  }
  return value;
}

const tell = (event) => process.stdout.write(`${JSON.stringify(plain(event))}\n`);
const problem = (error) => ({ code: error.code ?? 0, message: error.message ?? `${error}` });

// Asks the test for a token, and waits for it.
const ask = (what) => new Promise((resolve, reject) => {
  const id = `ask-${Object.keys(waiting).length}`;
  waiting[id] = (token) => (token ? resolve(token) : reject(new UnauthorizedError()));
  tell({ event: 'token', id, ...what });
});

const commands = {
  connect({ client, url, token, refresh }) {
    const options = { websocket, minReconnectDelay: 20, maxReconnectDelay: 300, token: token ?? '' };
    if (refresh) options.getToken = () => ask({ who: client });
    const made = (clients[client] = new Centrifuge(url, options));
    for (const event of ['connecting', 'connected', 'disconnected', 'error', 'subscribed', 'unsubscribed', 'publication', 'join', 'leave', 'message']) {
      made.on(event, (context) => tell({ event, ...context, who: client, server: true, error: context.error && problem(context.error) }));
    }
    made.connect();
  },
  subscribe({ client, channel, token, refresh, options }) {
    const made = clients[client];
    const settings = { minResubscribeDelay: 20, maxResubscribeDelay: 300, token: token ?? '', ...options };
    if (refresh) settings.getToken = () => ask({ who: client, channel });
    const subscription = made.newSubscription(channel, settings);
    for (const event of ['subscribing', 'subscribed', 'unsubscribed', 'error', 'publication', 'join', 'leave']) {
      subscription.on(event, (context) => tell({ event, ...context, who: client, channel, error: context.error && problem(context.error) }));
    }
    subscription.subscribe();
  },
  unsubscribe: ({ client, channel }) => clients[client].getSubscription(channel).unsubscribe(),
  resubscribe: ({ client, channel }) => clients[client].getSubscription(channel).subscribe(),
  disconnect: ({ client }) => clients[client].disconnect(),
  token: ({ id, token }) => waiting[id](token),
  async call({ client, id, method, args }) {
    const [first, second] = args;
    const calls = {
      publish: () => clients[client].publish(first, encode(second)),
      rpc: () => clients[client].rpc(first, encode(second)),
      history: () => clients[client].history(first, second),
      presence: () => clients[client].presence(first),
      presenceStats: () => clients[client].presenceStats(first),
    };
    try {
      tell({ id, result: await calls[method]() });
    } catch (error) {
      tell({ id, error: problem(error) });
    }
  },
};

createInterface({ input: process.stdin }).on('line', (line) => {
  const { command, ...rest } = JSON.parse(line);
  commands[command](rest);
}).on('close', () => process.exit(0));
