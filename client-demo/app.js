import { fetchToken } from './api.js';
import { userPanel } from './panel.js';
import { presence } from './presence.js';
import { publishForm } from './publish.js';
import { signInCard } from './signin.js';

const MOST_USERS = 4;
const SUGGESTIONS = ['42', 'ada', 'linus', 'grace', 'alan'];

const place = document.getElementById('users');
const addUser = document.getElementById('add-user');
const panels = new Map(); // user → panel, in the order they were added
let card = null;

const who = presence({
  isHere: (user) => panels.has(user),
  picked: (user) => form.to(user, { replace: true }),
});
const form = publishForm({ isOnline: (user) => panels.get(user)?.isLive() || who.isOnline(user) });

/** Users are given as `?user=42`, `?user=a&user=b` or `?users=a,b`. */
function usersInAddress() {
  const query = new URLSearchParams(location.search);
  const named = [...query.getAll('user'), ...query.getAll('users').flatMap((users) => users.split(','))];
  return [...new Set(named.map((user) => user.trim()).filter((user) => user !== ''))];
}

/** Lets a reload or a shared link open the page signed in. */
function rememberUsers() {
  const users = [...panels.keys()];
  const query = new URLSearchParams();
  if (users.length > 1 && !users.some((user) => user.includes(','))) query.set('users', users.join(','));
  else for (const user of users) query.append('user', user);
  const search = query.toString().replaceAll('%2C', ',');
  history.replaceState(null, '', search ? `?${search}` : location.pathname);
}

function refuse(user) {
  if (panels.has(user)) return `${user} is on this page already. Open another window for a second connection.`;
  return panels.size >= MOST_USERS ? `This page shows ${MOST_USERS} users at most.` : null;
}

function arrange() {
  document.title = panels.size > 0 ? `${[...panels.keys()].join(', ')} · tidings` : 'tidings';
  place.dataset.count = String(place.childElementCount);
  addUser.hidden = panels.size === 0 || card !== null || panels.size >= MOST_USERS;
  rememberUsers();
  who.redraw();
}

function closeCard() {
  card?.remove();
  card = null;
}

function askForUser(error, suggestion) {
  closeCard();
  const free = SUGGESTIONS.find((user) => !panels.has(user)) ?? '';
  card = signInCard({
    suggestion: suggestion ?? free,
    error,
    check: refuse,
    signedIn: (user, token) => open(user, token).focus(),
    cancel: panels.size > 0 ? () => { closeCard(); arrange(); addUser.focus(); } : undefined,
  });
  place.append(card);
  arrange();
}

function open(user, token) {
  closeCard();
  const panel = userPanel(user, token, {
    signOut() {
      panels.delete(user);
      panel.node.remove();
      if (panels.size === 0) askForUser();
      arrange();
      (place.querySelector('input') ?? addUser).focus();
    },
  });
  panels.set(user, panel);
  place.append(panel.node);
  form.to(user, { replace: false });
  arrange();
  return panel;
}

async function start() {
  const users = usersInAddress();
  const problems = [];
  for (const user of users) {
    const problem = refuse(user);
    try {
      if (problem) problems.push([user, problem]);
      else open(user, await fetchToken(user));
    } catch (failure) {
      problems.push([user, `${user}: ${failure.message}`]);
    }
  }
  const sentences = new Set(problems.map(([, problem]) => problem)); // One for all users that are too many.
  if (problems.length > 0) askForUser([...sentences].join(' '), problems[0][0]);
  else if (users.length === 0) askForUser();
}

addUser.addEventListener('click', () => {
  askForUser();
  place.querySelector('input').select();
});
start();
