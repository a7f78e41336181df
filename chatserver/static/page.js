// The page around <chat-room>: which rooms there are, and what one is called.

import './chat-room.js';

const chat = document.querySelector('chat-room');
const rooms = document.getElementById('rooms');
const list = rooms.querySelector('ul');
const join = document.getElementById('join');
const me = document.getElementById('me');
const welcome = document.getElementById('welcome');
const naming = document.getElementById('naming');

const LOBBY = 'lobby';

let known = remembered('chat rooms', [LOBBY]);
let name = remembered('chat name', null); // empty: a guest; null: not asked yet
let asked = ''; // the room that the reader wants to be in, until it is known whether there is one
let current = '';
let unseen = 0;

function remembered(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // this browser keeps nothing
  }
}

// --- Rooms ---

function wanted() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return '';
  }
}

function link(room) {
  return `#${encodeURIComponent(room)}`;
}

function enter(room) {
  asked = room;
  chat.room = room;
  chat.hidden = false;
  showTitle();
}

/** The room is one, and this reader is in it. */
function entered(room) {
  asked = '';
  current = room;
  if (!known.includes(room)) known.push(room);
  remember('chat rooms', known);
  remember('chat room', room);
  showRooms();
  showTitle();
}

/** There is no way into the room that was asked for: back to where the reader was. */
function refused(text) {
  const room = asked;
  asked = '';
  if (!room || !current || current === room || known.includes(room)) return;
  problem('join', text);
  history.replaceState(null, '', link(current));
  chat.room = current;
  document.getElementById('new-room').focus();
}

function forget(room) {
  known = known.filter((other) => other !== room);
  remember('chat rooms', known);
  showRooms();
}

function showRooms() {
  list.replaceChildren(...known.map((room) => {
    const anchor = document.createElement('a');
    anchor.href = link(room);
    anchor.append(Object.assign(document.createElement('bdi'), { textContent: room }));
    const item = document.createElement('li');
    item.append(anchor);
    if (room === current) anchor.setAttribute('aria-current', 'page');
    else if (known.length > 1) item.append(remover(room));
    return item;
  }));
}

function remover(room) {
  const button = document.createElement('button');
  button.type = 'button';
  button.setAttribute('aria-label', `Remove ${room} from the list`);
  button.textContent = '×';
  button.addEventListener('click', () => {
    forget(room);
    list.querySelector('a').focus();
  });
  return button;
}

function showTitle() {
  document.title = `${unseen ? `(${unseen}) ` : ''}${asked || current || 'Chat'}`;
}

function problem(of, text) {
  const place = document.getElementById(`${of}-problem`);
  place.textContent = text;
  place.hidden = !text;
}

join.addEventListener('submit', (event) => {
  event.preventDefault();
  const input = document.getElementById('new-room');
  const room = input.value.trim();
  problem('join', '');
  if (!room) return;
  if (room === current) close();
  location.hash = link(room);
});
join.addEventListener('input', () => problem('join', ''));
list.addEventListener('click', (event) => {
  if (event.target.closest('a')) close();
});
addEventListener('hashchange', () => {
  const room = wanted();
  if (room && room !== chat.room) enter(room);
});

/** The list, where it lies over the room. */
function close() {
  if (rooms.matches(':popover-open')) rooms.hidePopover();
}

// --- One's name ---

function askName(text = '') {
  const input = document.getElementById('name');
  input.value = name ?? '';
  problem('name', text);
  close();
  if (!welcome.open) welcome.showModal();
  input.focus();
}

function call(given) {
  name = given;
  remember('chat name', name);
  welcome.close();
  showName();
  if (name) chat.name = name;
  else chat.removeAttribute('name');
  if (!chat.room) start();
}

function showName() {
  me.querySelector('bdi').textContent = name || 'Guest';
}

naming.addEventListener('submit', (event) => {
  event.preventDefault();
  const given = document.getElementById('name').value.trim();
  if (given) call(given);
  else problem('name', 'Write a name, or stay a guest.');
});
naming.addEventListener('input', () => problem('name', ''));
document.getElementById('nameless').addEventListener('click', () => call(''));
me.addEventListener('click', () => askName());
welcome.addEventListener('cancel', () => name === null && call(''));

// --- What the room tells ---

chat.addEventListener('chat-state', ({ detail }) => {
  if (detail.state !== 'connected' || detail.room === current) return;
  const joined = detail.room === document.getElementById('new-room').value.trim();
  entered(detail.room);
  if (joined) join.reset();
  close();
  if (matchMedia('(pointer: fine)').matches) chat.focus();
});
chat.addEventListener('chat-error', ({ detail }) => {
  if (!detail.refused) return;
  if (detail.code === 107 && name && /^name\b/i.test(detail.text)) askName(detail.text);
  else refused(detail.text);
});
chat.addEventListener('chat-message', ({ detail }) => {
  if (!document.hidden || detail.own) return;
  unseen++;
  showTitle();
});
document.addEventListener('visibilitychange', () => {
  if (document.hidden) return;
  unseen = 0;
  showTitle();
});

// --- Begin ---

function start() {
  enter(wanted() || remembered('chat room', null) || known[0] || LOBBY);
}

showRooms();
showName();
if (name === null) askName();
else call(name);
