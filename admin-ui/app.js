import { key, get, metrics, readiness, Refusal, Unreachable } from './api.js';
import { History, parse } from './metrics.js';
import { instanceList } from './instances.js';
import { numbers } from './numbers.js';
import { onlineUsers } from './online.js';
import { refusals } from './refusals.js';
import { userView } from './user.js';

const EVERY_MS = 2_000;
const KEPT_MS = 120_000;

const node = (id) => document.getElementById(id);
const [problem, state, signIn, content, forget] = ['problem', 'state', 'sign-in', 'content', 'forget'].map(node);
const history = new History(KEPT_MS);
const oneUser = userView(failed);
const online = onlineUsers(oneUser.show, failed);
let timer;

/** Says what is wrong, above everything else; null clears it. */
function complain(text) {
  problem.hidden = text === null;
  if (problem.textContent !== (text ?? '')) problem.textContent = text ?? '';
}

function askForKey(why) {
  clearTimeout(timer);
  key.forget();
  content.hidden = forget.hidden = true;
  signIn.hidden = false;
  state.textContent = '';
  complain(null);
  node('key-result').textContent = why;
  node('key').value = '';
  node('key').focus();
}

/** What each part of the page does with an error of a call: a missing key concerns the whole page, others the part. */
function failed(error, say) {
  if (error instanceof Refusal && error.status === 401) askForKey(refusedKey());
  else say(error.message);
  if (!(error instanceof Refusal || error instanceof Unreachable)) throw error; // A fault of this page.
}

const refusedKey = () => (key.get() === null ? '' : 'This key was refused.');

function showState(ready) {
  const text = ready.ready ? 'Ready' : `Not ready: ${ready.reason}`;
  if (state.textContent !== text) state.textContent = text;
  state.dataset.state = ready.ready ? 'good' : 'bad';
  const refused = Object.entries(ready.refused ?? {}).map(([feature, why]) => `${feature} (${why})`);
  complain(refused.length > 0 ? `Redis refuses what these need: ${refused.join(', ')}.` : null);
}

/** One round: what the page shows of the instance and its fleet. */
async function round() {
  try {
    const [info, text, ready] = await Promise.all([get('info'), metrics(), readiness()]);
    if (content.hidden) open();
    showState(ready);
    history.add(parse(text), performance.now());
    instanceList(info);
    numbers(history, info);
    refusals(history);
    await online.count();
  } catch (error) {
    failed(error, (message) => {
      state.textContent = 'No answer';
      state.dataset.state = 'bad';
      complain(`${message} Trying again every 2 s; the numbers below are old.`);
    });
  }
}

function open() {
  signIn.hidden = true;
  content.hidden = false;
  forget.hidden = key.get() === null;
  online.list();
  oneUser.fromAddress();
}

async function run() {
  clearTimeout(timer);
  if (!document.hidden) await round();
  clearTimeout(timer);
  if (signIn.hidden) timer = setTimeout(run, EVERY_MS);
}

node('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  key.set(node('key').value.trim());
  signIn.hidden = true;
  run();
});
forget.addEventListener('click', () => {
  key.forget();
  location.reload(); // Nothing of what was shown stays in the page.
});
document.addEventListener('visibilitychange', () => document.hidden || (signIn.hidden && run()));
run();
