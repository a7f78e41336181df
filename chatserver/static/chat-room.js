// <chat-room>: a room of a chatserver on any page, in one module. docs/embed.md of the project says how to use it.
//
// Connection    one WebSocket that comes back by itself, and the commands on it
// Outbox        what was said and isn't stored yet
// Room          the part of a room's log that is known, and who is there
// Timeline      the messages on the screen
// ChatRoom      the element
//
// Whatever others have written reaches the page as text only.

const SERVER = new URL('../', import.meta.url);

// --- Small things -----------------------------------------------------------------------------------------------------

const SVG = 'http://www.w3.org/2000/svg';

/** An element with attributes and children; strings become text. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== undefined) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** An icon of 24 × 24, drawn with lines. */
function icon(...paths) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('aria-hidden', 'true');
  for (const path of paths) {
    const line = document.createElementNS(SVG, 'path');
    line.setAttribute('d', path);
    svg.append(line);
  }
  return svg;
}

/** Web storage, or memory where a page may have none. */
class Kept {
  #memory = new Map();

  constructor(area) {
    try {
      this.area = globalThis[area];
      this.area.getItem('');
    } catch {
      this.area = null;
    }
  }

  get(key) {
    const text = this.area ? this.area.getItem(key) : this.#memory.get(key);
    try {
      return JSON.parse(text ?? 'null');
    } catch {
      return null; // somebody else wrote it
    }
  }

  set(key, value) {
    const text = JSON.stringify(value);
    try {
      if (this.area) this.area.setItem(key, text);
      else this.#memory.set(key, text);
    } catch {
      this.#memory.set(key, text); // it is full: good enough until the page is closed
    }
  }

  delete(key) {
    this.area?.removeItem(key);
    this.#memory.delete(key);
  }

  keys(prefix) {
    return [...new Set([...Object.keys(this.area ?? {}), ...this.#memory.keys()])].filter((key) => key.startsWith(prefix));
  }
}

const lasting = new Kept('localStorage');
const passing = new Kept('sessionStorage');

/** A key that nobody guesses. `crypto.randomUUID` isn't there on pages without TLS. */
function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Between nothing and a limit that doubles with each try, so that many who lost a server don't come back as one. */
function backoff(tries, least = 500, most = 20_000) {
  return Math.random() * Math.min(most, least * 2 ** tries);
}

/** The user that a token speaks of. Only the server can tell whether it is true. */
function userOf(token) {
  try {
    const payload = token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/');
    const bytes = Uint8Array.from(atob(payload), (character) => character.charCodeAt(0));
    return String(JSON.parse(new TextDecoder().decode(bytes)).sub ?? '');
  } catch {
    return '';
  }
}

/** The hue of somebody's avatar. */
function hueOf(text) {
  let hash = 0x811c9dc5;
  for (const character of text) hash = Math.imul(hash ^ character.codePointAt(0), 0x01000193);
  return 15 * ((Math.imul(hash ^ (hash >>> 16), 0x45d9f3b) >>> 8) % 24);
}

/** Who somebody is: what groups their messages, and what they are called. `info` is absent for programs. */
function person(info, user = '') {
  if (!info) return { id: `program ${user}`, name: user || 'server', client: '', user: '' };
  const called = [info.chan_info?.name, info.conn_info?.name].find((name) => typeof name === 'string' && name.trim());
  const name = called || info.user || `guest-${info.client.slice(0, 6)}`;
  return { id: info.user ? `user ${info.user}` : `guest ${name}`, name, client: info.client, user: info.user };
}

/** The text of what was said; `plain` is false where it is JSON that has none. */
function textOf(data) {
  const plain = typeof data?.body === 'string';
  return { text: plain ? data.body : JSON.stringify(data ?? null), plain };
}

function listed(names, most = 3) {
  const shown = names.length > most + 1 ? [...names.slice(0, most), `${names.length - most} others`] : names;
  return shown.length > 1 ? `${shown.slice(0, -1).join(', ')} and ${shown.at(-1)}` : shown[0];
}

const WORDS = {
  102: 'There is no such kind of room on this server.',
  103: 'This room isn’t open to you.',
  106: 'You are in too many rooms.',
  420: 'The server can’t store messages just now.',
  421: 'The server has no space left for messages.',
  422: 'The server’s storage doesn’t answer.',
  3005: 'Your access has run out.',
  3500: 'Your access isn’t valid.',
  3503: 'The server has ended this connection.',
  3507: 'Nobody without a token is let in here.',
};

/** What went wrong, as a sentence. */
function inWords({ code, message }) {
  const text = WORDS[code] ?? message;
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?…]$/.test(text) ? '' : '.'}`;
}

// --- Connection -------------------------------------------------------------------------------------------------------

const ANSWER_MS = 10_000;
const PROBE_MS = 2_000;
const STABLE_MS = 5_000;
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** The server's no. */
class Refusal extends Error {
  constructor({ code, message, temporary }) {
    super(message);
    this.code = code;
    this.mayPass = Boolean(temporary) || (code >= 420 && code <= 422);
  }
}

/** The connection is gone, and nobody knows what became of the command. */
class Lost extends Error {
  constructor(code) {
    super(`connection lost (${code})`);
    this.code = code;
  }
}

/**
 * One WebSocket that speaks the Centrifuge protocol in JSON, and comes back by itself.
 *
 * `state` is `connecting`, `connected`, `waiting` until it tries again, `stopped` when that would be no use, or `closed`.
 * `owner` has `hello()`, what to connect with, and is told by `connectionChanged()`, `pushed(push)`, `tokenWanted(reason)`.
 */
class Connection {
  state = 'closed';
  problem = null;
  client = '';
  expires = false;
  doubtful = false;
  #socket = null;
  #calls = new Map();
  #id = 0;
  #tries = 0;
  #since = 0;
  #silence = 0; // after so many milliseconds without a frame the link is dead; 0: nothing is expected
  #heard = 0;
  #timers = {};

  constructor(url, owner) {
    this.url = url;
    this.owner = owner;
  }

  open() {
    this.#stopTimers();
    this.#forget(1000);
    this.#become('connecting');
    let socket;
    try {
      socket = new WebSocket(this.url);
    } catch (error) {
      this.#become('stopped', { code: 0, message: error.message });
      return;
    }
    this.#socket = socket;
    this.#after('opening', ANSWER_MS, () => this.#drop(1006));
    socket.onopen = () => this.#hello();
    socket.onmessage = ({ data }) => this.#read(data);
    socket.onclose = ({ code, reason }) => this.#ended(code, reason);
  }

  close() {
    this.#stopTimers();
    this.#forget(1000);
    this.#become('closed');
  }

  /** Tries at once, if it waits to try again; asks for a sign of life, if there was none for a while. */
  wake() {
    if (this.state === 'waiting') this.open();
    else if (this.state === 'connected' && this.#silence && Date.now() - this.#heard > this.#silence / 2) this.probe();
  }

  /** Finds out whether the other side is still there: whatever it answers, it is. Until then it is `doubtful`. */
  probe() {
    if (this.state !== 'connected') return;
    this.doubtful = true;
    this.call('presence_stats', { channel: '-' }, PROBE_MS).catch(() => {});
  }

  /** Asks for something. Rejects with a `Refusal` or `Lost`. */
  call(command, body, patience = ANSWER_MS) {
    const socket = this.#socket;
    if (!socket || socket.readyState !== WebSocket.OPEN) return Promise.reject(new Lost(1006));
    const id = ++this.#id;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#drop(1006), patience);
      this.#calls.set(id, { command, resolve, reject, timer });
      socket.send(JSON.stringify({ id, [command]: body }));
    });
  }

  /** Shows a newer token of the same user. */
  async refresh(token) {
    try {
      this.#expect(await this.call('refresh', { token }));
    } catch (error) {
      if (error instanceof Refusal) this.open();
    }
  }

  async #hello() {
    clearTimeout(this.#timers.opening);
    try {
      const result = await this.call('connect', this.owner.hello());
      this.client = result.client;
      this.pong = result.pong === true;
      this.#silence = result.ping ? result.ping * 1000 + 10_000 : 0;
      this.#since = Date.now();
      this.#watch();
      this.#expect(result);
      this.#become('connected');
    } catch (error) {
      if (error instanceof Refusal) this.#refused(error);
    }
  }

  #refused(error) {
    if (error.mayPass) {
      this.#drop(1006);
      return;
    }
    this.#forget(1000);
    this.#become('stopped', error);
    if (error.code === 109) this.owner.tokenWanted('expired');
  }

  #expect({ expires, ttl }) {
    this.expires = expires === true;
    clearTimeout(this.#timers.token);
    if (this.expires) {
      const early = Math.max(ttl * 1000 - 10_000, ttl * 500);
      this.#after('token', Math.min(early, LONGEST_TIMER_MS), () => this.owner.tokenWanted('expiring'));
    }
  }

  #read(data) {
    this.#heard = Date.now();
    this.#watch();
    if (this.doubtful) {
      this.doubtful = false;
      this.owner.roomChanged();
    }
    for (const line of data.split('\n')) {
      const reply = JSON.parse(line);
      if (reply.id) this.#answered(reply);
      else if (reply.push) this.owner.pushed(reply.push);
      else if (this.pong) this.#socket?.send('{}');
    }
  }

  #answered(reply) {
    const call = this.#calls.get(reply.id);
    if (!call) return;
    this.#calls.delete(reply.id);
    clearTimeout(call.timer);
    if (reply.error) call.reject(new Refusal(reply.error));
    else call.resolve(reply[call.command] ?? {});
  }

  #watch() {
    clearTimeout(this.#timers.silence);
    if (this.#silence) this.#after('silence', this.#silence, () => this.#drop(1006));
  }

  /** Doesn't wait for the other side, which may be gone. */
  #drop(code) {
    this.#ended(code, '');
  }

  #ended(code, reason) {
    this.#stopTimers();
    if (this.state === 'connected' && Date.now() - this.#since > STABLE_MS) this.#tries = 0;
    this.#forget(code);
    if ((code >= 3500 && code < 4000) || (code >= 4500 && code < 5000)) {
      // a client that brought no token to where one is needed is told that its request was bad
      const tokenless = code === 3501 && this.state === 'connecting' && !this.owner.hello().token;
      this.#become('stopped', { code: tokenless ? 3507 : code, message: reason || `code ${code}` });
      if (code === 3500 || tokenless) this.owner.tokenWanted(tokenless ? 'missing' : 'refused');
      return;
    }
    this.#after('retry', backoff(this.#tries++), () => this.open());
    this.#become('waiting');
    if (code === 3005) this.owner.tokenWanted('expired');
  }

  #forget(code) {
    const socket = this.#socket;
    this.#socket = null;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
    }
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    for (const { timer, reject } of calls) {
      clearTimeout(timer);
      reject(new Lost(code));
    }
  }

  #after(name, milliseconds, act) {
    clearTimeout(this.#timers[name]);
    this.#timers[name] = setTimeout(act, milliseconds);
  }

  #stopTimers() {
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
  }

  #become(state, problem = null) {
    this.doubtful = false;
    this.state = state;
    this.problem = problem;
    this.owner.connectionChanged();
  }
}

// --- Outbox -----------------------------------------------------------------------------------------------------------

/**
 * What was said in one room and isn't stored yet. It outlives the page, and is sent in its order.
 *
 * Each message has a key of its own, under which the server stores it once, however often it is sent. Its `state` is
 * `waiting`, `sending`, `stored` when it only has to come back as a message of the room, or `failed` with a `problem`.
 */
class Outbox {
  #prefix;

  constructor(scope, room) {
    this.#prefix = `chat-room outbox ${scope} ${room} `;
    this.messages = lasting
      .keys(this.#prefix)
      .map((name) => ({ key: name.slice(this.#prefix.length), state: 'waiting', problem: '', seen: false, ...lasting.get(name) }))
      .filter((message) => typeof message.text === 'string')
      .sort((one, other) => one.at - other.at);
  }

  get next() {
    return this.messages.find((message) => message.state === 'waiting');
  }

  add(text) {
    const at = Math.max(Date.now(), (this.messages.at(-1)?.at ?? 0) + 1);
    const message = { key: randomKey(), at, text, state: 'waiting', problem: '', seen: false };
    this.messages.push(message);
    lasting.set(this.#prefix + message.key, { at, text });
    return message;
  }

  /** It is stored, and needn't be sent again. */
  stored(message, offset) {
    lasting.delete(this.#prefix + message.key);
    message.state = 'stored';
    message.offset = offset;
  }

  remove(message) {
    lasting.delete(this.#prefix + message.key);
    this.messages = this.messages.filter((other) => other !== message);
  }

  /** What has come back as a message of the room isn't shown twice. */
  settle(offset) {
    this.messages = this.messages.filter((message) => message.state !== 'stored' || message.offset > offset);
  }
}

// --- Room -------------------------------------------------------------------------------------------------------------

const PAGE = 60;
const LARGEST_PAGE = 300;
const KEPT_ENTRIES = 6_000;
const MOST_PEOPLE = 500;
const PEOPLE_MS = 60_000;
const BETWEEN = 2 ** -20; // from a message to what is told behind it and kept nowhere, so has no offset of its own
const FILL_MS = 300;
const PAUSE_MS = 1_000;

/** Connections that this browser said something with, so that it knows its own messages again. */
const own = {
  name: 'chat-room clients',
  clients: new Set(lasting.get('chat-room clients') ?? []),
  add(client) {
    if (this.clients.has(client)) return;
    this.clients.add(client);
    lasting.set(this.name, [...this.clients].slice(-100));
  },
};

/**
 * The part of a room's log that is known: `entries`, oldest first, without a hole, up to the offset `last`; and who is
 * there. The server has said that there is something up to the offset `top`: while that is more than `last`, something
 * is missing, and is read from the history, in order.
 *
 * `owner` is told by `roomChanged(place)`, `arrived(entry)`, `peopleChanged()` and `failed(problem)`, and has `following`,
 * whether all that is new is wanted at once.
 */
class Room {
  entries = [];
  last = 0;
  top = 0;
  epoch = '';
  loaded = false;
  complete = false; // there is nothing before the first entry
  joined = false;
  problem = null;
  people = new Map(); // by connection
  count = 0;
  notes = new Map(); // by the offset that they stand behind
  #were = new Set(); // who was there when the connection was lost
  #lost = false; // something was missed that isn't kept
  #early = []; // what came before it was known whether there is a history
  #joining = null; // what came behind the answer, in the same turn
  #numbered = false; // what is said has an offset, unless it is kept nowhere
  #unknown = Infinity; // from this offset on the history knows more than pushes told
  #over = false;
  #reading = {};
  #timers = {};
  #tries = 0;

  constructor(name, connection, owner, { scope, user, place }) {
    this.name = name;
    this.connection = connection;
    this.owner = owner;
    this.user = user;
    this.place = place;
    this.outbox = new Outbox(scope, name);
  }

  get level() {
    return this.loaded && this.last >= this.top;
  }

  /** Becomes a member, again after each loss of the connection. */
  async enter() {
    try {
      if (!this.joined) await this.#join();
      if (!this.loaded) await this.#load();
      if (!this.joined) return;
      this.problem = null;
      this.#tries = 0;
      this.owner.roomChanged();
      this.flush();
      this.#ask();
    } catch (error) {
      this.#failed(error);
    }
  }

  /** Is a member no more. */
  leave() {
    this.gone();
    this.#over = true;
    this.connection.call('unsubscribe', { channel: this.name }).catch(() => {});
  }

  /** The connection is lost. */
  gone() {
    this.joined = false;
    this.#unknown = Infinity;
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
  }

  pushed(push) {
    if (this.#joining) {
      this.#joining.push(push);
      return;
    }
    const { pub, join, leave, unsubscribe } = push;
    if (pub) this.#published(pub);
    else if (join) this.#came(join.info);
    else if (leave) this.#left(leave.info);
    else if (unsubscribe) this.#ended(unsubscribe);
  }

  /** Puts `text` in the outbox, from where it is sent as soon as it can be. */
  say(text) {
    this.outbox.add(text);
    this.owner.roomChanged();
    this.flush();
  }

  retry(message) {
    message.state = 'waiting';
    this.owner.roomChanged();
    this.flush();
  }

  drop(message) {
    this.outbox.remove(message);
    this.owner.roomChanged();
  }

  /** Sends what waits, one after the other. */
  flush() {
    return this.#once('flush', async () => {
      for (let message; this.joined && (message = this.outbox.next); ) {
        if (!(await this.#send(message))) return;
      }
    });
  }

  /** Reads on before what is known. */
  older() {
    if (!this.loaded || this.complete || !this.joined) return undefined;
    return this.#once('older', async () => {
      const before = Math.ceil(this.entries[0]?.offset ?? this.last + 1);
      const page = before > 1 ? await this.#history({ before, limit: PAGE, epoch: this.epoch }) : null;
      if (page?.messages.length) this.#merge(page.messages);
      else this.complete = true;
      this.owner.roomChanged();
    });
  }

  /** Reads on behind what is known: all there is for those who follow, else a page. */
  newer() {
    if (!this.loaded || !this.joined) return undefined;
    return this.#once('newer', async () => {
      do {
        const { top } = this;
        const page = await this.#history({ after: this.last, limit: LARGEST_PAGE, epoch: this.epoch });
        this.#merge(page.messages);
        if (!page.messages.length) this.last = top; // there is nothing to be had
        this.owner.roomChanged();
      } while (this.last < this.top && this.owner.following);
      this.owner.roomChanged();
    });
  }

  /** Shows the end of the log, without all that is between it and what is known. */
  async latest() {
    if (!this.loaded || this.level) return undefined;
    if (this.top - this.last <= LARGEST_PAGE) return this.newer();
    this.#forget();
    return this.#load().catch((error) => this.#failed(error));
  }

  async #join() {
    const behind = (this.#joining = []);
    try {
      await this.#subscribe();
    } finally {
      this.#joining = null;
    }
    if (this.joined) behind.forEach((push) => this.pushed(push));
  }

  async #subscribe() {
    const position = this.loaded && this.epoch ? { recover: true, epoch: this.epoch, offset: this.top } : {};
    const answer = await this.connection.call('subscribe', { channel: this.name, join_leave: true, ...position });
    if (this.#over) return;
    this.joined = true;
    this.#were = new Set([...this.people.values()].map(({ id }) => id));
    this.people.clear();
    if (position.recover && answer.recovered) {
      for (const publication of answer.publications ?? []) this.#published(publication, { missed: true });
      if (this.top > position.offset) this.#fill(position.offset);
      if (!this.level && this.owner.following) this.newer();
    } else {
      this.#forget();
      this.#lost = Boolean(position.recover);
      this.epoch = answer.epoch ?? '';
      this.#numbered = Boolean(this.epoch);
      this.top = answer.offset ?? 0;
    }
  }

  #forget() {
    this.entries = [];
    this.#early = [];
    this.notes.clear();
    this.last = 0;
    this.loaded = this.complete = false;
  }

  async #load() {
    const place = this.place?.epoch === this.epoch ? this.place : null;
    this.place = null;
    const wanted = place ? { after: Math.max(0, Math.floor(place.offset) - PAGE / 2), limit: 2 * PAGE } : { limit: PAGE };
    try {
      const page = await this.#history(wanted);
      this.#merge(page.messages);
      this.last = Number(page.position.split(':')[1]);
      this.complete = !page.messages.length || page.messages[0].offset === 1;
      this.#numbered = true;
      this.#early.filter(({ offset }) => !offset).forEach((entry) => this.#append(entry));
    } catch (error) {
      if (!(error instanceof Refusal) || error.mayPass) throw error;
      this.complete = true; // nobody reads it here
      this.#early.forEach((entry) => this.#append(entry));
      this.last = this.top;
    }
    this.#early = [];
    this.loaded = true;
    if (this.#lost) this.notes.set(this.last, { text: 'Not everything that you missed is kept. The room was loaded anew.' });
    this.#lost = false;
    this.owner.roomChanged(place);
    if (this.last < this.top && this.owner.following && !place) this.newer();
  }

  async #history(wanted) {
    return (await this.connection.call('rpc', { method: 'history', data: { room: this.name, ...wanted } })).data;
  }

  /** Of what a program says only the history knows who it was. */
  #fillSoon(offset) {
    if (this.#unknown === Infinity) {
      this.#after('fill', FILL_MS, () => {
        const from = this.#unknown;
        this.#unknown = Infinity;
        this.#fill(from - 1);
      });
    }
    this.#unknown = Math.min(this.#unknown, offset);
  }

  /** Asks for the times of what was missed, of which pushes tell nothing. */
  async #fill(after) {
    try {
      while (after < this.last) {
        const { messages } = await this.#history({ after, limit: LARGEST_PAGE, epoch: this.epoch });
        if (!messages.length) break;
        this.#complete(messages);
        after = messages.at(-1).offset;
      }
      this.owner.roomChanged();
    } catch (error) {
      if (!(error instanceof Lost) && !(error instanceof Refusal)) throw error;
    }
  }

  /** Takes a page that comes just before, or just behind, what is known. */
  #merge(messages) {
    const entries = messages.filter(({ kind }) => kind === 'message').map((message) => this.#entry(message));
    const first = this.entries[0]?.offset ?? this.last + 1;
    const before = entries.filter(({ offset }) => this.loaded && offset < first);
    const behind = entries.filter(({ offset }) => offset > this.last);
    this.entries = [...before, ...this.entries, ...behind];
    this.last = Math.max(this.last, messages.at(-1)?.offset ?? 0);
    this.top = Math.max(this.top, this.last);
    this.outbox.settle(this.last);
  }

  /** Takes what the history knows better of messages that are known. */
  #complete(messages) {
    const known = new Map(this.entries.map((entry) => [entry.offset, entry]));
    for (const message of messages) {
      const entry = known.get(message.offset);
      if (entry) Object.assign(entry, this.#entry(message));
    }
  }

  #entry({ offset, time = null, data, info, user }) {
    const who = person(info, user);
    const mine = info ? (info.user ? info.user === this.user : own.clients.has(info.client)) : false;
    return { offset, time, who, mine, ...textOf(data) };
  }

  #published(publication, { missed = false } = {}) {
    const { offset } = publication;
    if (offset <= this.top) return; // it was told before
    const wasLevel = this.level;
    const next = wasLevel && (!offset || offset === this.last + 1);
    this.top = offset ?? this.top;
    const entry = this.#entry({ ...publication, time: missed ? null : Date.now() });
    if (next) this.#append(entry);
    else if (!this.loaded) this.#early.push(entry);
    if (entry.mine) this.#recognise(entry);
    if (!missed) this.owner.arrived(entry);
    this.owner.roomChanged();
    if (wasLevel && !next) this.newer();
    if (next && !publication.info && offset) this.#fillSoon(offset);
  }

  #append(entry) {
    if (!entry.offset && this.#numbered) {
      entry.offset = Math.max(this.last, this.entries.at(-1)?.offset ?? 0) + BETWEEN;
    } else {
      this.last = entry.offset ??= this.last + 1;
      this.top = Math.max(this.top, this.last);
    }
    this.entries.push(entry);
    this.outbox.settle(this.last);
    if (this.entries.length > KEPT_ENTRIES && this.owner.following) {
      this.entries.splice(0, KEPT_ENTRIES / 2);
      this.complete = false;
    }
  }

  /** A message may come back before its sender is told that it is stored. */
  #recognise(entry) {
    const message = this.outbox.messages.find(
      ({ state, client, text, seen }) =>
        (state === 'sending' || state === 'waiting') && client === entry.who.client && text === entry.text && !seen,
    );
    if (message) message.seen = true;
  }

  async #send(message) {
    message.state = 'sending';
    message.client = this.connection.client;
    this.owner.roomChanged();
    own.add(this.connection.client);
    try {
      const data = { room: this.name, body: message.text, key: message.key };
      const answer = await this.connection.call('rpc', { method: 'send', data });
      this.outbox.stored(message, this.epoch ? (answer.data?.offset ?? 0) : 0);
      this.outbox.settle(this.last);
    } catch (error) {
      return this.#unsent(message, error);
    }
    this.owner.roomChanged();
    return true;
  }

  /** Whether the next message may be sent. */
  #unsent(message, error) {
    if (message.seen) this.outbox.remove(message);
    else if (error instanceof Lost && error.code !== 1009) message.state = 'waiting';
    else if (error.mayPass) {
      message.state = 'waiting';
      this.#after('flush', PAUSE_MS + backoff(2), () => this.flush());
    } else {
      message.state = 'failed';
      message.problem = error.code === 1009 ? 'It is too long.' : inWords(error);
      this.owner.failed({ code: error.code, text: message.problem });
    }
    this.owner.roomChanged();
    return message.state === 'failed';
  }

  // Who is there

  async #ask() {
    this.#after('people', PEOPLE_MS, () => this.#ask());
    try {
      const { num_clients: count } = await this.connection.call('presence_stats', { channel: this.name });
      this.count = count;
      if (count > MOST_PEOPLE) this.people.clear();
      else if (count !== this.people.size) {
        const { presence } = await this.connection.call('presence', { channel: this.name });
        this.people = new Map(Object.values(presence).map((info) => [info.client, person(info)]));
        this.count = this.people.size;
      }
    } catch (error) {
      if (!(error instanceof Refusal) && !(error instanceof Lost)) throw error;
      clearTimeout(this.#timers.people); // nobody is told, or the connection is gone
      if (error.mayPass) this.#after('people', PAUSE_MS + backoff(2), () => this.#ask());
    }
    this.owner.peopleChanged();
  }

  #came(info) {
    if (this.people.has(info.client)) return;
    const who = person(info);
    const here = this.#isHere(who) || this.#were.delete(who.id);
    this.people.set(info.client, who);
    this.count = this.people.size;
    if (!here && info.client !== this.connection.client) this.#note(who.name, 'came', 'left');
    this.owner.peopleChanged();
  }

  #left(info) {
    this.people.delete(info.client);
    this.count = this.people.size;
    const who = person(info);
    if (!this.#isHere(who)) this.#note(who.name, 'left', 'came');
    this.owner.peopleChanged();
  }

  #isHere(who) {
    return [...this.people.values()].some(({ id }) => id === who.id);
  }

  /** Folds who comes and goes between two messages into one line; who does both isn't named. */
  #note(name, what, opposite) {
    if (!this.loaded) return;
    let note = this.notes.get(this.last);
    if (!note?.came) this.notes.set(this.last, (note = { text: note?.text, came: new Set(), left: new Set() }));
    if (!note[opposite].delete(name)) note[what].add(name);
    for (const offset of this.notes.keys()) if (this.notes.size > 50) this.notes.delete(offset);
    this.owner.roomChanged();
  }

  // What goes wrong

  #ended({ code, reason }) {
    this.joined = false;
    if (code >= 2500) this.#after('enter', backoff(1), () => this.enter());
    else this.#refused({ code, message: `You are no longer in this room (${reason})` });
  }

  #failed(error) {
    if (error instanceof Lost || this.#over) return; // it enters again when it is back
    if (!(error instanceof Refusal)) throw error;
    if (error.mayPass) this.#after('enter', 500 + backoff(this.#tries++), () => this.enter());
    else this.#refused(error);
  }

  #refused(error) {
    this.problem = error;
    this.owner.failed({ code: error.code, text: inWords(error), refused: true });
    this.owner.roomChanged();
  }

  /** One at a time of each kind, and after one that was refused the next not at once. */
  #once(kind, work) {
    this.#reading[kind] ??= work()
      .catch((error) => {
        this.#failed(error);
        return new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
      })
      .finally(() => {
        this.#reading[kind] = null;
        this.owner.roomChanged();
      });
    return this.#reading[kind];
  }

  isReading(kind) {
    return Boolean(this.#reading[kind]);
  }

  #after(name, milliseconds, act) {
    clearTimeout(this.#timers[name]);
    this.#timers[name] = setTimeout(act, milliseconds);
  }
}

// --- Timeline ---------------------------------------------------------------------------------------------------------

const STEP = 60;
const SHOWN = 240; // messages that are in the document at a time
const NEAR_PX = 900;
const AT_END_PX = 40;
const GROUP_MS = 5 * 60_000;
const DAY_MS = 24 * 3600_000;
const LINK = /https?:\/\/[^\s<>"'`\u0000-\u001f\u202a-\u202e\u2066-\u2069]+/giu;
const EMOJI = /^(?:\p{RGI_Emoji}|\s){1,9}$/v;

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: 'numeric', minute: '2-digit' });
const DATE = new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long' });
const OLD_DATE = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'long', year: 'numeric' });
const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: 'full', timeStyle: 'medium' });

function dayOf(time) {
  return new Date(time).setHours(0, 0, 0, 0);
}

function dayName(day) {
  const days = Math.round((dayOf(Date.now()) - day) / DAY_MS);
  if (days < 2) return days === 1 ? 'Yesterday' : 'Today';
  return (days < 180 ? DATE : OLD_DATE).format(day);
}

function timeTag(time) {
  return h('time', { datetime: new Date(time).toISOString(), title: FULL.format(time) }, CLOCK.format(time));
}

/** Text with its web addresses as links. */
function rich(text) {
  const parts = [];
  let place = 0;
  for (const match of text.matchAll(LINK)) {
    const address = trimmed(match[0]);
    if (!URL.canParse(address)) continue;
    const attributes = { href: address, target: '_blank', rel: 'noopener noreferrer nofollow' };
    parts.push(text.slice(place, match.index), h('a', attributes, address));
    place = match.index + address.length;
  }
  return [...parts, text.slice(place)];
}

/** Without what rather belongs to the sentence around it. */
function trimmed(address) {
  let text = address.replace(/[.,;:!?]+$/, '');
  while (text.endsWith(')') && !text.includes('(')) text = text.slice(0, -1).replace(/[.,;:!?]+$/, '');
  return text;
}

function initial(word) {
  return ([...new Intl.Segmenter().segment(word)][0]?.segment ?? '').toUpperCase();
}

function initials(name) {
  const words = name.split(/[\s._-]+/u).filter(Boolean);
  return words.length > 1 ? initial(words[0]) + initial(words.at(-1)) : initial(name);
}

function avatar(who, letters = initials(who.name)) {
  const circle = h('span', { class: 'avatar', 'aria-hidden': 'true' }, letters);
  circle.style.setProperty('--hue', String(hueOf(who.name)));
  return circle;
}

/** The first index from which on `entries` have at least this offset. */
function indexOf(entries, offset) {
  let [low, high] = [0, entries.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (entries[middle].offset < offset) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * A stretch of a room's messages, in a scrolling box. What is in the document is bounded, however many there are.
 *
 * `following`: the end is on the screen, and stays there.
 */
class Timeline {
  following = true;
  seen = 0;
  #room = null;
  #rows = new Map();
  #first = 0; // offsets of what is shown
  #last = Infinity;
  #scheduled = false;
  #place = null;

  constructor(scroller, list, owner) {
    this.scroller = scroller;
    this.list = list;
    this.owner = owner;
    scroller.addEventListener('scroll', () => this.#scrolled(), { passive: true });
    const observer = new ResizeObserver(() => this.following && this.#toEnd());
    observer.observe(scroller);
    observer.observe(list);
  }

  /** How many messages have come that weren't on the screen yet. */
  get unread() {
    return this.#room && !this.following ? Math.max(0, this.#room.top - this.seen) : 0;
  }

  show(room) {
    this.#room = room;
    this.#rows.clear();
    this.list.replaceChildren();
    this.following = !room.place;
    this.#first = 0;
    this.#last = Infinity;
    this.update();
  }

  /** Shows things as they were. */
  restore(place) {
    this.#place = place;
    this.following = false;
    this.seen = this.#room.last;
    const { entries } = this.#room;
    const index = indexOf(entries, place.offset);
    this.#first = entries[Math.max(0, index - STEP)]?.offset ?? 0;
    this.#last = entries[Math.min(entries.length - 1, index + STEP)]?.offset ?? Infinity;
    this.update();
  }

  /** Where the reader is, to be restored later; null at the end. */
  get place() {
    const anchor = this.following ? null : this.#anchor();
    const offset = anchor && Number(anchor.key.slice(1));
    return offset ? { epoch: this.#room.epoch, offset, shift: anchor.bottom } : null;
  }

  /** Shows the newest messages, and follows them. */
  async toEnd() {
    this.following = true;
    this.#first = 0;
    this.#last = Infinity;
    await this.#room.latest();
    this.update();
  }

  /** Draws anew, soon. */
  update() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      if (this.#room) this.#draw();
    });
  }

  #draw() {
    const anchor = this.following ? null : this.#anchor();
    if (anchor) this.#extend(); // at once: above the first message is nothing that could give way
    this.#lay(this.#items());
    if (this.following) {
      this.#toEnd();
      this.seen = this.#room.top;
    } else if (this.#place) {
      this.#hold({ key: `m${this.#place.offset}`, bottom: this.#place.shift });
      this.#place = null;
    } else if (anchor) this.#hold(anchor);
    this.#reach();
    this.owner.drawn();
  }

  /** The first message on the screen, and where it ends: what is above it may become another. */
  #anchor() {
    const top = this.scroller.getBoundingClientRect().top;
    for (const [key, { node }] of this.#rows) {
      const box = node.getBoundingClientRect();
      if (key.startsWith('m') && box.bottom > top) return { key, bottom: box.bottom - top };
    }
    return null;
  }

  #hold({ key, bottom }) {
    const node = this.#rows.get(key)?.node;
    if (!node) return;
    const now = node.getBoundingClientRect().bottom - this.scroller.getBoundingClientRect().top;
    this.scroller.scrollTop += now - bottom;
  }

  #toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    const atEnd = scrollHeight - scrollTop - clientHeight < AT_END_PX && this.#shown()[1] === this.#room?.entries.length;
    const following = atEnd && (this.#room.level || (this.following && this.#room.isReading('newer')));
    if (following !== this.following) {
      if (!following) this.#settle();
      this.following = following;
      if (following) this.#last = Infinity;
      this.update();
    }
    this.#reach();
  }

  /** From now on the stretch doesn't move by itself. */
  #settle() {
    const [from, to] = this.#shown();
    const { entries, top } = this.#room;
    this.#first = entries[from]?.offset ?? 0;
    this.#last = entries[to - 1]?.offset ?? Infinity;
    this.seen = top;
  }

  /** Indices of what is shown. */
  #shown() {
    const { entries } = this.#room ?? { entries: [] };
    const to = this.following ? entries.length : indexOf(entries, this.#last + 1);
    const from = indexOf(entries, this.#first);
    return [this.following ? Math.max(from, to - SHOWN) : from, to];
  }

  /** Shows more where the reader comes close to an end of what is shown. */
  #reach() {
    if (!this.#room?.loaded) return;
    const [above, below] = this.#near();
    const [from, to] = this.#shown();
    const { entries, level } = this.#room;
    if (above && from === 0) this.#room.older();
    if (below && to === entries.length && !level) this.#room.newer();
    if (this.#extend()) this.update();
  }

  /** Whether the reader is close to the upper and to the lower end, which is what follows when that is shown. */
  #near() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return [scrollTop < NEAR_PX, !this.following && scrollHeight - scrollTop - clientHeight < NEAR_PX];
  }

  /** Makes what is shown longer where the reader is close to its end, and shorter at the other one. */
  #extend() {
    const { entries } = this.#room;
    const [above, below] = this.#near();
    const [from, to] = this.#shown();
    if (above && from > 0 && !(this.following && to - from >= SHOWN)) {
      const start = Math.max(0, from - STEP);
      this.#first = entries[start].offset;
      if (!this.following) this.#last = entries[Math.min(to, start + SHOWN) - 1].offset;
    } else if (below && to < entries.length) {
      const end = Math.min(entries.length, to + STEP);
      this.#last = entries[end - 1].offset;
      this.#first = entries[Math.max(from, end - SHOWN)].offset;
    } else return false;
    return true;
  }

  /** What is to be seen: keys, what makes a row look as it does, and how it is made. */
  #items() {
    const { entries, complete, outbox, notes } = this.#room;
    const [from, to] = this.#shown();
    const items = [];
    if (this.#room.loaded && complete && from === 0) items.push(this.#start(entries.length + outbox.messages.length > 0));
    for (let index = from; index < to; index++) {
      this.#addEntry(items, entries[index], entries[index - 1]);
      const note = notes.get(entries[index].offset);
      if (note) this.#addNote(items, note, entries[index].offset);
    }
    if (!entries.length && notes.size) this.#addNote(items, [...notes.values()].at(-1), 0);
    if (to === entries.length) {
      let before = entries.at(-1);
      for (const message of outbox.messages.filter(({ seen }) => !seen)) {
        items.push(this.#pending(message, before));
        before = { mine: true, time: message.at, who: {} };
      }
    }
    return items;
  }

  #start(any) {
    const { name } = this.#room;
    const make = () => {
      const text = any ? 'This is where it begins.' : 'Nobody has said anything here yet. Be the first.';
      return h('li', { class: `start${any ? '' : ' empty'}` }, h('h3', {}, h('bdi', {}, name)), h('p', {}, text));
    };
    return { key: 'start', signature: `${name} ${any}`, make };
  }

  #addEntry(items, entry, before) {
    const day = entry.time && dayOf(entry.time);
    const sameDay = before?.time && day ? dayOf(before.time) === day : Boolean(before);
    if (day && !sameDay) {
      const make = () => h('li', { class: 'day' }, h('span', {}, dayName(day)));
      items.push({ key: `d${entry.offset}`, signature: dayName(day), make });
    }
    const close = before && Math.abs((entry.time ?? 0) - (before.time ?? entry.time ?? 0)) < GROUP_MS;
    const head = !(close && sameDay && before.who.id === entry.who.id && before.mine === entry.mine);
    const signature = `${head} ${entry.time} ${entry.mine} ${entry.who.id} ${entry.who.name}`;
    items.push({ key: `m${entry.offset}`, signature, make: () => this.#message(entry, head) });
  }

  #message(entry, head) {
    const { who, mine, time } = entry;
    const name = mine ? 'You' : who.name;
    const meta = h('div', { class: head ? 'meta' : 'hidden' }, h('bdi', { class: 'name', part: 'name' }, name));
    if (time) meta.append(' ', timeTag(time));
    const row = h('li', { class: `message${mine ? ' own' : ''}${head ? ' head' : ''}`, part: 'message' }, meta, bubble(entry));
    if (head && !mine) row.prepend(avatar(who));
    return row;
  }

  #pending(message, before) {
    const head = !(before?.mine && Math.abs(message.at - (before.time ?? 0)) < GROUP_MS);
    const online = this.#room.joined && !this.#room.connection.doubtful;
    const state = {
      waiting: online ? 'Sending…' : 'Waiting for the connection',
      sending: online ? 'Sending…' : 'Waiting for the connection',
      stored: 'Sending…',
      failed: `Not sent. ${message.problem}`,
    }[message.state];
    const make = () => {
      const entry = { text: message.text, plain: true };
      const status = h('div', { class: 'status' }, h('span', {}, state));
      if (message.state === 'failed') {
        status.append(' ', this.#button('Try again', () => this.#room.retry(message)));
        status.append(' ', this.#button('Delete', () => this.#room.drop(message)));
      }
      const classes = `message own pending ${message.state}${head ? ' head' : ''}`;
      return h('li', { class: classes, part: 'message' }, bubble(entry), status);
    };
    return { key: `p${message.key}`, signature: `${state} ${head}`, make };
  }

  #button(label, act) {
    const button = h('button', { type: 'button', class: 'link' }, label);
    button.addEventListener('click', act);
    return button;
  }

  #addNote(items, note, offset) {
    const lines = [note.text];
    if (note.came?.size) lines.push(`${listed([...note.came])} came`);
    if (note.left?.size) lines.push(`${listed([...note.left])} left`);
    const text = lines.filter(Boolean).join(' · ');
    if (text) items.push({ key: `n${offset}`, signature: text, make: () => h('li', { class: 'note' }, text) });
  }

  /** Makes the list these items, and touches nothing that stays as it is. */
  #lay(items) {
    const rows = new Map();
    const wanted = new Set(items.map(({ key }) => key));
    for (const [key, { node }] of this.#rows) if (!wanted.has(key)) node.remove();
    let next = this.list.firstChild;
    for (const { key, signature, make } of items) {
      let row = this.#rows.get(key);
      if (row?.signature !== signature) {
        const node = make();
        if (row) {
          if (row.node === next) next = next.nextSibling;
          row.node.replaceWith(node);
        }
        row = { signature, node };
      }
      if (row.node === next) next = next.nextSibling;
      else this.list.insertBefore(row.node, next);
      rows.set(key, row);
    }
    this.#rows = rows;
  }
}

function bubble({ text, plain }) {
  const emoji = plain && EMOJI.test(text);
  const attributes = { class: `bubble${emoji ? ' emoji' : ''}`, part: 'bubble' };
  return h('div', attributes, h('div', { dir: 'auto' }, ...(plain ? rich(text) : [h('code', {}, text)])));
}

// --- The element ------------------------------------------------------------------------------------------------------

const ANNOUNCE_MS = 300;
const ANNOUNCED = 6;

const STYLE = `
:host {
  --_background: var(--chat-background, light-dark(#fff, #15181c));
  --_text: var(--chat-text, light-dark(#1a1e23, #e7eaee));
  --_muted: var(--chat-muted, light-dark(#5c6672, #9ba6b2));
  --_line: var(--chat-line, light-dark(#e7eaee, #282d34));
  --_bubble: var(--chat-bubble, light-dark(#f1f3f6, #23282f));
  --_accent: var(--chat-accent, light-dark(#2c5cc5, #8fb0ff));
  --_on-accent: var(--chat-on-accent, light-dark(#fff, #10151f));
  --_own: var(--chat-own, light-dark(#2c5cc5, #2f529f));
  --_own-text: var(--chat-own-text, #fff);
  --_danger: var(--chat-danger, light-dark(#b3261e, #ffaba3));
  --_radius: var(--chat-radius, 18px);
  --_measure: var(--chat-measure, 50rem);
  display: block;
  box-sizing: border-box;
  block-size: 36rem;
  max-block-size: 100dvh;
  min-inline-size: 0;
  overflow: hidden;
  color-scheme: light dark;
  color: var(--_text);
  background: var(--_background);
  font: 400 0.9375rem/1.5 var(--chat-font, Inter, ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif);
  -webkit-text-size-adjust: 100%;
}
:host([hidden]) { display: none; }
*, *::before, *::after { box-sizing: border-box; }
h2, h3, p, ol, ul { margin: 0; padding: 0; list-style: none; font: inherit; }
button, textarea { font: inherit; color: inherit; }
button { border: 0; background: none; padding: 0; cursor: pointer; }
:focus { outline: none; }
:focus-visible { outline: 2px solid var(--_accent); outline-offset: 2px; }
svg { inline-size: 1.25rem; block-size: 1.25rem; fill: none; stroke: currentColor; stroke-width: 2; stroke-linecap: round; stroke-linejoin: round; }
.hidden { position: absolute; inline-size: 1px; block-size: 1px; margin: -1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }

.around { container: room / inline-size; block-size: 100%; }
.room { display: flex; flex-direction: column; block-size: 100%; }
header {
  display: flex; align-items: center; gap: 0.75rem; min-block-size: 4rem;
  padding: 0.625rem max(1rem, env(safe-area-inset-right)) 0.625rem max(1rem, env(safe-area-inset-left));
  border-block-end: 1px solid var(--_line);
}
.heading { flex: 1; min-inline-size: 0; }
h2 { overflow: hidden; font-size: 1.0625rem; font-weight: 650; line-height: 1.3; letter-spacing: -0.011em; text-overflow: ellipsis; white-space: nowrap; }
.state { display: flex; align-items: baseline; gap: 0.4375rem; color: var(--_muted); font-size: 0.8125rem; line-height: 1.4; }
.state::before { content: ''; flex: none; inline-size: 0.5rem; block-size: 0.5rem; border-radius: 50%; background: light-dark(#1f9d61, #4cc38a); }
.state[data-tone='busy']::before { background: light-dark(#d08a1d, #e5b45a); }
.state[data-tone='bad']::before { background: var(--_danger); }
.here {
  display: flex; align-items: center; gap: 0.5rem; min-block-size: 2.5rem; padding: 0.25rem 0.75rem; border-radius: 1.25rem;
  color: var(--_muted); font-size: 0.8125rem; font-weight: 500; white-space: nowrap;
}
.here:hover, .here[aria-expanded='true'] { background: var(--_bubble); color: var(--_text); }
.stack { display: none; }
.stack .avatar { --size: 1.625rem; margin-inline-start: -0.375rem; box-shadow: 0 0 0 2px var(--_background); }

.middle { position: relative; display: flex; flex: 1; min-block-size: 0; }
.stage { position: relative; display: flex; flex: 1; flex-direction: column; min-inline-size: 0; }
.scroller { flex: 1; min-block-size: 0; overflow: hidden auto; overflow-anchor: none; overscroll-behavior: contain; scrollbar-width: thin; scrollbar-color: var(--_line) transparent; }
.scroller:focus-visible { outline-offset: -2px; }
.list { display: flex; flex-direction: column; justify-content: flex-end; min-block-size: 100%; max-inline-size: calc(var(--_measure) + 2rem); margin-inline: auto; padding: 1.25rem 1rem 0.75rem; }
.reading { position: absolute; inset-block-start: 0.5rem; inset-inline: 0; z-index: 1; pointer-events: none; text-align: center; }
.reading span { display: inline-block; padding: 0.25rem 0.75rem; border-radius: 1rem; background: var(--_background); color: var(--_muted); font-size: 0.8125rem; box-shadow: 0 1px 4px rgb(0 0 0 / 0.16); }
[hidden] { display: none !important; }

.day, .note, .start { color: var(--_muted); font-size: 0.8125rem; text-align: center; }
.day { display: flex; align-items: center; gap: 0.875rem; padding-block: 1.25rem 0.25rem; font-weight: 500; }
.day::before, .day::after { content: ''; flex: 1; block-size: 1px; background: var(--_line); }
.note { padding: 0.75rem 1rem 0; overflow-wrap: anywhere; }
.start { padding-block: 1.5rem 0.5rem; }
.start.empty { margin-block: auto; }
.start h3 { color: var(--_text); font-size: 1.25rem; font-weight: 650; letter-spacing: -0.015em; overflow-wrap: anywhere; }

.message { display: grid; grid-template-columns: 2.25rem minmax(0, 1fr); column-gap: 0.75rem; justify-items: start; padding-block-start: 0.1875rem; }
.message.head { padding-block-start: 1rem; }
.message > * { grid-column: 2; }
.avatar {
  --size: 2.25rem; display: grid; place-items: center; inline-size: var(--size); block-size: var(--size); flex: none; overflow: hidden; border-radius: 50%;
  background: light-dark(hsl(var(--hue) 55% 91%), hsl(var(--hue) 26% 27%)); color: light-dark(hsl(var(--hue) 60% 27%), hsl(var(--hue) 65% 87%));
  font-size: calc(var(--size) * 0.36); font-weight: 600; letter-spacing: 0.01em; line-height: 1; user-select: none;
}
.message > .avatar { grid-column: 1; grid-row: 1 / span 2; margin-block-start: 0.125rem; }
.meta { display: flex; align-items: baseline; gap: 0.5rem; max-inline-size: 100%; padding-block-end: 0.1875rem; font-size: 0.8125rem; line-height: 1.4; }
.meta.hidden { display: block; }
.name { overflow: hidden; font-weight: 600; text-overflow: ellipsis; white-space: nowrap; }
time { flex: none; color: var(--_muted); font-size: 0.75rem; font-variant-numeric: tabular-nums; }
.bubble {
  max-inline-size: min(38rem, 100%); padding: 0.5rem 0.875rem; border-radius: var(--_radius); background: var(--_bubble);
  overflow-wrap: anywhere; white-space: pre-wrap; tab-size: 4;
}
.head > .bubble { border-start-start-radius: 0.375rem; }
.bubble a { color: var(--_accent); text-decoration: underline; text-decoration-thickness: 1px; text-underline-offset: 0.17em; }
.bubble code { color: var(--_muted); font: 0.8125rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.bubble.emoji { padding-inline: 0; background: none; font-size: 2.25rem; line-height: 1.2; }
.own { grid-template-columns: minmax(0, 1fr); justify-items: end; padding-inline-start: 3rem; }
.own > * { grid-column: 1; }
.own .name { position: absolute; inline-size: 1px; block-size: 1px; overflow: hidden; clip-path: inset(50%); }
.own > .bubble { background: var(--_own); color: var(--_own-text); }
.own.head > .bubble { border-start-start-radius: var(--_radius); border-start-end-radius: 0.375rem; }
.own > .bubble a, .own > .bubble code { color: inherit; }
.own > .bubble.emoji { background: none; color: inherit; }
.bubble a:focus-visible { outline-color: currentColor; border-radius: 2px; }
.pending > .bubble { background: var(--_background); color: var(--_text); box-shadow: inset 0 0 0 1.5px var(--_own); }
.pending.failed > .bubble { box-shadow: inset 0 0 0 1.5px var(--_danger); }
.status { padding-block: 0.1875rem; color: var(--_muted); font-size: 0.75rem; }
.sending .status { animation: appear 0.2s 0.6s both; }
.failed .status { color: var(--_danger); }
.link { min-block-size: 1.5rem; padding-inline: 0.25rem; color: var(--_text); font-weight: 600; text-decoration: underline; text-underline-offset: 0.17em; }

.news {
  position: absolute; inset-block-start: -3rem; inset-inline-start: 50%; z-index: 1; display: flex; align-items: center; gap: 0.375rem; translate: -50%;
  min-block-size: 2.25rem; padding: 0.25rem 0.75rem 0.25rem 1rem; border-radius: 1.125rem; background: var(--_accent); color: var(--_on-accent);
  font-size: 0.8125rem; font-weight: 600; white-space: nowrap; box-shadow: 0 2px 10px rgb(0 0 0 / 0.2);
}
.news svg { inline-size: 1rem; block-size: 1rem; }
.foot { position: relative; max-inline-size: calc(var(--_measure) + 2rem); inline-size: 100%; margin-inline: auto; padding: 0 1rem max(1rem, env(safe-area-inset-bottom)); }
.banner { padding: 0.5rem 0.875rem; margin-block-end: 0.5rem; border-radius: 0.75rem; background: light-dark(#fdf3dc, #3a2f16); color: light-dark(#6b4700, #f5d998); font-size: 0.8125rem; animation: appear 0.2s 0.5s both; }
.banner[data-tone='bad'] { background: light-dark(#fdecea, #41201d); color: light-dark(#8c1d18, #ffc9c3); }
form { display: flex; align-items: flex-end; gap: 0.375rem; padding: 0.3125rem; border-radius: 1.5rem; background: var(--_bubble); box-shadow: inset 0 0 0 1px transparent; transition: box-shadow 0.15s; }
form:focus-within { box-shadow: inset 0 0 0 2px var(--_accent); }
textarea {
  flex: 1; min-inline-size: 0; min-block-size: 2.375rem; max-block-size: 12rem; padding: 0.4375rem 0.5rem 0.4375rem 0.875rem; border: 0; background: none;
  font-size: 1rem; line-height: 1.5; resize: none; overflow-y: auto; scrollbar-width: thin;
}
textarea:focus-visible { outline: none; }
textarea::placeholder { color: var(--_muted); opacity: 1; }
.send { display: grid; flex: none; place-items: center; inline-size: 2.375rem; block-size: 2.375rem; border-radius: 50%; background: var(--_accent); color: var(--_on-accent); transition: background 0.15s, color 0.15s; }
.send:disabled { background: transparent; color: var(--_muted); cursor: default; }

.people { display: none; flex: none; flex-direction: column; inline-size: 15.5rem; padding: 1.25rem 1rem; overflow-y: auto; border-inline-start: 1px solid var(--_line); background: var(--_background); }
.people h3 { padding-block-end: 0.625rem; color: var(--_muted); font-size: 0.8125rem; font-weight: 500; }
.people li { display: flex; align-items: center; gap: 0.625rem; padding-block: 0.3125rem; }
.people .avatar { --size: 1.875rem; }
.people .who { min-inline-size: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.people small { color: var(--_muted); font-size: 0.8125rem; }
.room[data-people='open'] .people { display: flex; }
@container room (width >= 56rem) { .room:not([data-people='closed']) .people { display: flex; } }
@container room (width < 46rem) {
  .people { position: absolute; inset-block: 0; inset-inline-end: 0; z-index: 2; inline-size: min(17rem, 86%); box-shadow: -8px 0 24px rgb(0 0 0 / 0.14); }
  .message { grid-template-columns: 2rem minmax(0, 1fr); column-gap: 0.5rem; }
  .message > .avatar { --size: 2rem; }
  .own { grid-template-columns: minmax(0, 1fr); }
  .list { padding-inline: 0.75rem; }
  .foot { padding-inline: 0.75rem; padding-block-end: max(0.75rem, env(safe-area-inset-bottom)); }
}
@container room (width >= 46rem) { .stack { display: flex; } }
@keyframes appear { from { opacity: 0; } }
@media (prefers-reduced-motion: reduce) { *, *::before, *::after { animation-duration: 0s !important; animation-delay: 0s !important; transition: none !important; } }
@media (forced-colors: active) { .bubble, form, .news { border: 1px solid; } }
`;

let sheet = null;

/** One for all elements; made by a script, so that a policy without `unsafe-inline` allows it. */
function styles() {
  if (!sheet) {
    sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
  }
  return sheet;
}

/**
 * `<chat-room room="kitchen">`: attributes `room`, `src` (the server), `name`, `token`; method `send(text)`; events
 * `chat-message`, `chat-state`, `chat-presence`, `chat-error` and `chat-token`, which asks the page for a newer token.
 */
export class ChatRoom extends HTMLElement {
  static observedAttributes = ['room', 'src', 'name', 'token'];

  #connection = null;
  #room = null;
  #now = {};
  #parts = {};
  #timeline;
  #said = []; // to be read out
  #told = ''; // the last state that the page was told
  #applying = false;
  #away = null; // switches off what listens to the window

  constructor() {
    super();
    const root = this.attachShadow({ mode: 'open', delegatesFocus: true });
    root.adoptedStyleSheets = [styles()];
    this.#build(root);
    this.#timeline = new Timeline(this.#parts.scroller, this.#parts.list, this);
  }

  connectedCallback() {
    this.#away = new AbortController();
    const { signal } = this.#away;
    addEventListener('online', () => this.#connection?.wake(), { signal });
    addEventListener('offline', () => this.#wentOffline(), { signal });
    addEventListener('pagehide', () => this.#keepPlace(), { signal });
    document.addEventListener('visibilitychange', () => document.hidden || this.#connection?.wake(), { signal });
    this.#apply();
  }

  disconnectedCallback() {
    this.#away.abort();
    this.#close();
  }

  attributeChangedCallback() {
    if (this.#applying) return;
    this.#applying = true;
    queueMicrotask(() => {
      this.#applying = false;
      if (this.isConnected) this.#apply();
    });
  }

  get room() { return this.getAttribute('room') ?? ''; }
  set room(value) { this.setAttribute('room', value); }
  get src() { return this.getAttribute('src') ?? ''; }
  set src(value) { this.setAttribute('src', value); }
  get name() { return this.getAttribute('name') ?? ''; }
  set name(value) { this.setAttribute('name', value); }
  get token() { return this.getAttribute('token') ?? ''; }
  set token(value) { this.setAttribute('token', value); }

  focus(options) {
    this.#parts.text.focus(options);
  }

  /** Says `text` in the room, now or when there is a connection. */
  send(text) {
    const said = String(text).replaceAll('\0', '').trim();
    if (!said || !this.#room) return;
    this.#room.say(said);
    this.#timeline.toEnd();
  }

  // What the connection asks and tells

  hello() {
    const { name, token } = this;
    return { ...(token && { token }), ...(name && { data: { name } }), name: 'chat-room' };
  }

  connectionChanged() {
    const { state, problem } = this.#connection ?? {};
    if (state === 'connected') this.#room?.enter();
    else this.#room?.gone();
    if (state === 'stopped') this.failed({ code: problem.code, text: inWords(problem), refused: true });
    this.roomChanged();
  }

  pushed(push) {
    if (push.channel === this.#room?.name) this.#room.pushed(push);
  }

  tokenWanted(reason) {
    this.#emit('chat-token', { reason });
  }

  // What the room asks and tells

  get following() {
    return this.#timeline.following;
  }

  /** `place`: where the reader was, to be shown again. */
  roomChanged(place = null) {
    if (place) this.#timeline.restore(place);
    this.#timeline.update();
    this.#showState();
  }

  peopleChanged() {
    this.#showPeople();
    const people = [...this.#room.people.values()].map(({ name, user }) => ({ name, user }));
    this.#emit('chat-presence', { room: this.#room.name, count: this.#room.count, people });
  }

  arrived({ offset, time, who, text, mine }) {
    if (!mine) this.#announce(who.name, text);
    const kept = Number.isInteger(offset) ? offset : 0;
    this.#emit('chat-message', { room: this.#room.name, offset: kept, time, author: who.name, body: text, own: mine });
  }

  failed(problem) {
    this.#emit('chat-error', { room: this.room, ...problem });
  }

  /** The timeline is on the screen. */
  drawn() {
    const { news, reading } = this.#parts;
    const { unread, following } = this.#timeline;
    news.hidden = following;
    news.firstChild.textContent = unread ? `${unread} new message${unread === 1 ? '' : 's'}` : 'Newest';
    const room = this.#room;
    reading.hidden = !(room.isReading('older') || (this.#connection.state === 'connected' && !room.loaded && !room.problem));
  }

  #apply() {
    const wanted = { url: this.#url(), name: this.name, token: this.token, user: userOf(this.token), room: this.room };
    const now = this.#now;
    if (!wanted.room) {
      this.#close();
      return;
    }
    if (!this.#connection || now.url !== wanted.url || now.user !== wanted.user) {
      this.#close();
      this.#now = wanted;
      this.#connection = new Connection(wanted.url, this);
      this.#change();
      this.#connection.open();
      return;
    }
    this.#now = wanted;
    if (now.room !== wanted.room) this.#change();
    if (now.token !== wanted.token && this.#connection.expires && this.#connection.state === 'connected' && wanted.token) {
      this.#connection.refresh(wanted.token);
    } else if (now.token !== wanted.token || now.name !== wanted.name) this.#connection.open();
  }

  /** To another room, or the same on another connection. */
  #change() {
    this.#leave();
    const { url, user, room } = this.#now;
    const scope = `${url} ${encodeURIComponent(user)}`;
    this.#room = new Room(room, this.#connection, this, { scope, user, place: passing.get(`chat-room place ${url} ${room}`) });
    this.#timeline.show(this.#room);
    this.#parts.text.value = passing.get(`chat-room draft ${url} ${room}`) ?? '';
    this.#fit();
    this.#parts.title.textContent = room;
    this.#parts.text.placeholder = `Message ${room}`;
    this.#showPeople();
    this.#showState();
    if (this.#connection.state === 'connected') this.#room.enter();
  }

  #leave() {
    if (!this.#room) return;
    this.#keepPlace();
    this.#room.leave();
    this.#room = null;
  }

  #close() {
    this.#leave();
    this.#connection?.close();
    this.#connection = null;
    this.#now = {};
  }

  /** Where the server is: `src`, or else where this module comes from. */
  #url() {
    const url = new URL(this.src || SERVER, document.baseURI);
    url.protocol = { 'http:': 'ws:', 'https:': 'wss:' }[url.protocol] ?? url.protocol;
    if (url.pathname.endsWith('/')) url.pathname += 'connection/websocket';
    url.hash = '';
    return url.href;
  }

  #keepPlace() {
    if (!this.#room) return;
    const { name, connection } = this.#room;
    const { place } = this.#timeline;
    if (place) passing.set(`chat-room place ${connection.url} ${name}`, place);
    else passing.delete(`chat-room place ${connection.url} ${name}`);
    passing.set(`chat-room draft ${connection.url} ${name}`, this.#parts.text.value);
  }

  /** The browser believes so; a server on this machine or network may still be there. */
  #wentOffline() {
    this.#connection?.probe();
    this.#showState();
  }

  // How it looks

  #build(root) {
    const p = this.#parts;
    p.title = h('bdi');
    p.state = h('p', { class: 'state', role: 'status', part: 'state' });
    p.count = h('span');
    p.stack = h('span', { class: 'stack' });
    p.here = h('button', { type: 'button', class: 'here', 'aria-expanded': 'false', 'aria-controls': 'people' }, p.stack, p.count);
    p.list = h('ol', { class: 'list', role: 'list' });
    p.reading = h('p', { class: 'reading', hidden: true }, h('span', {}, 'Loading…'));
    p.scroller = h('div', { class: 'scroller', tabindex: '0', role: 'region', 'aria-label': 'Messages', part: 'messages' }, p.list);
    p.news = h('button', { type: 'button', class: 'news', part: 'news', hidden: true }, h('span'), icon('M12 5v14', 'm19 12-7 7-7-7'));
    p.banner = h('p', { class: 'banner', hidden: true });
    p.text = h('textarea', { rows: '1', 'aria-label': 'Message', enterkeyhint: 'send', autocomplete: 'off', dir: 'auto', part: 'input' });
    p.send = h('button', { class: 'send', 'aria-label': 'Send', part: 'send', disabled: true }, icon('M12 19V5', 'm5 12 7-7 7 7'));
    p.form = h('form', { part: 'composer' }, p.text, p.send);
    p.people = h('ul', { role: 'list' });
    p.aside = h('aside', { class: 'people', id: 'people', 'aria-label': 'People here', part: 'people' }, h('h3', {}, 'Here now'), p.people);
    // What is read out: the list itself also changes when old messages are shown.
    p.log = h('div', { class: 'hidden', role: 'log', 'aria-live': 'polite', 'aria-label': 'New messages' });
    const heading = h('div', { class: 'heading' }, h('h2', { part: 'title' }, p.title), p.state);
    const head = h('header', { part: 'header' }, h('slot', { name: 'start' }), heading, p.here, h('slot', { name: 'end' }));
    const foot = h('div', { class: 'foot' }, p.news, p.banner, p.form);
    const stage = h('div', { class: 'stage' }, p.reading, p.scroller, foot);
    p.room = h('div', { class: 'room' }, head, h('div', { class: 'middle' }, stage, p.aside), p.log);
    root.append(h('div', { class: 'around' }, p.room));
    this.#listen();
  }

  #listen() {
    const p = this.#parts;
    p.form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.#submit();
    });
    p.text.addEventListener('input', () => this.#fit());
    p.text.addEventListener('keydown', (event) => {
      const composing = event.isComposing || event.keyCode === 229;
      if (event.key !== 'Enter' || event.shiftKey || composing) return;
      event.preventDefault();
      this.#submit();
    });
    p.news.addEventListener('click', () => {
      this.#timeline.toEnd();
      p.text.focus();
    });
    p.here.addEventListener('click', () => this.#openPeople(!this.#peopleAreOpen()));
    p.room.addEventListener('keydown', (event) => {
      if (event.key !== 'Escape' || p.room.dataset.people !== 'open') return;
      this.#openPeople(false);
      p.here.focus();
    });
    new ResizeObserver(() => p.here.setAttribute('aria-expanded', String(this.#peopleAreOpen()))).observe(p.aside);
  }

  #submit() {
    this.send(this.#parts.text.value);
    this.#parts.text.value = '';
    this.#fit();
  }

  /** In a wide room they are, unless somebody closes them. */
  #peopleAreOpen() {
    return this.#parts.aside.offsetWidth > 0;
  }

  #openPeople(open) {
    this.#parts.room.dataset.people = open ? 'open' : 'closed';
  }

  /** The input grows with its text. */
  #fit() {
    const { text, send } = this.#parts;
    text.style.blockSize = 'auto';
    text.style.blockSize = `${text.scrollHeight}px`;
    send.disabled = !text.value.trim();
  }

  /** What goes on, in words, and how it is meant. */
  #state() {
    const { state, problem } = this.#connection ?? { state: 'closed' };
    if (state === 'stopped') return ['stopped', 'bad', inWords(problem)];
    if (state === 'waiting' || this.#connection?.doubtful) {
      return ['offline', 'busy', navigator.onLine ? 'No connection, trying again…' : 'You’re offline'];
    }
    if (state !== 'connected') return ['connecting', 'busy', 'Connecting…'];
    if (this.#room?.problem) return ['refused', 'bad', inWords(this.#room.problem)];
    return this.#room?.joined ? ['connected', 'good', 'Connected'] : ['connecting', 'busy', 'Joining…'];
  }

  #showState() {
    const { state, banner, here } = this.#parts;
    const [what, tone, text] = this.#state();
    const told = `${what} ${text} ${this.#room?.name}`;
    if (told === this.#told) return;
    this.#told = told;
    state.dataset.tone = tone;
    state.textContent = text;
    here.hidden = what !== 'connected' || !this.#room.count;
    banner.dataset.tone = tone;
    banner.textContent = what === 'offline' ? 'What you write is kept, and sent when the connection is back.' : text;
    banner.hidden = what !== 'offline' && tone !== 'bad';
    this.#emit('chat-state', { room: this.#room?.name ?? this.room, state: what, text });
  }

  #showPeople() {
    const { here, count, stack, people } = this.#parts;
    const everybody = new Map();
    const self = this.#room.people.get(this.#connection.client);
    if (self) everybody.set(self.id, self);
    const others = [...this.#room.people.values()].sort((one, other) => one.name.localeCompare(other.name));
    for (const who of others) everybody.set(who.id, who);
    const number = this.#room.people.size ? everybody.size : this.#room.count;
    here.hidden = !number || !this.#room.joined;
    count.textContent = `${number} here`;
    stack.replaceChildren(...[...everybody.values()].slice(0, 4).map((who) => avatar(who, initial(who.name))));
    const rows = [...everybody.values()].map((who) => {
      const name = h('span', { class: 'who' }, h('bdi', {}, who.name));
      return h('li', {}, avatar(who), name, who === everybody.get(self?.id) ? h('small', {}, 'you') : null);
    });
    if (!rows.length) rows.push(h('li', {}, `${number} people`));
    people.replaceChildren(...rows);
  }

  /** Has screen readers say what is new, a few at a time. */
  #announce(name, text) {
    this.#said.push(`${name}: ${text}`);
    if (this.#said.length > 1) return;
    setTimeout(() => {
      const said = this.#said.splice(0);
      const lines = said.length > ANNOUNCED ? [`${said.length} new messages`] : said;
      this.#parts.log.append(...lines.map((line) => h('p', { dir: 'auto' }, line)));
      while (this.#parts.log.childElementCount > ANNOUNCED) this.#parts.log.firstChild.remove();
    }, ANNOUNCE_MS);
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }));
  }
}

customElements.define('chat-room', ChatRoom);
