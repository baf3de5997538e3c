import { call, get, ofUser } from './api.js';
import { confirmed } from './confirm.js';
import { el } from './dom.js';
import { publishForm } from './publish.js';
import { plural, time } from './text.js';

const PAGE = 20;

const node = (id) => document.getElementById(id);
const [form, input, result, view] = ['user-form', 'user', 'user-result', 'user-view'].map(node);

const button = (label, testid, onclick, classes = '.quiet.small') =>
  el(`button${classes}`, { type: 'button', 'data-testid': testid, onclick }, label);

const part = (title, ...children) => el('section.part', { 'aria-label': title }, el('h4', {}, title), ...children);

function summary({ user, online, connections, last_seen }, again) {
  const seen = online || last_seen === null ? '' : `, last seen ${time(last_seen)}`;
  const text = online ? `online, ${plural(connections, 'connection')}` : `offline${seen}`;
  return el('div.summary', {}, el('h3', { tabindex: -1, 'data-testid': 'shown-user' }, user),
    el('p.state', { 'data-state': online ? 'good' : 'off', 'data-testid': 'presence' }, text),
    button('Read again', 'refresh-user', again));
}

const connection = ({ id, instance, device, address, connected_at, dialect }) => el('li.row', { 'data-testid': 'connection' },
  el('span', {}, `${dialect} from ${address}`),
  el('span.hint', {}, `device ${device}, since ${time(connected_at)}`),
  el('span.hint', {}, 'connection ', el('code', {}, id), ' on ', el('code', {}, instance)));

function connectionPart({ connections, total, unanswered }, disconnect) {
  const notes = [];
  if (total > connections.length) notes.push(`The oldest ${connections.length} of ${total}.`);
  if (unanswered.length > 0) notes.push(`Without those of ${unanswered.join(', ')}, which did not answer.`);
  return part('Connections',
    connections.length === 0 ? el('p.hint', {}, 'None.') : el('ul.rows', {}, ...connections.map(connection)),
    notes.length === 0 ? null : el('p.hint.bad', { 'data-testid': 'connection-note' }, notes.join(' ')),
    total === 0 && unanswered.length === 0 ? null : el('div.buttons', {}, button('Disconnect', 'disconnect', disconnect)));
}

const position = ({ device, id, unread }) => el('li.row', { 'data-testid': 'position' },
  el('span', {}, `${device}: ${plural(unread, 'unread', 'unread')}`),
  el('span.hint', {}, id === null ? 'nothing read' : 'read up to ', id === null ? null : el('code', {}, id)));

/** The read positions of these devices, and of any other that is asked for. */
function positionPart(user, positions, failed) {
  const list = el('ul.rows', {}, ...positions.map(position));
  const device = el('input', { 'aria-label': 'Another device', placeholder: 'another device', maxlength: 64, required: true, autocomplete: 'off', 'data-testid': 'device' });
  const note = el('p.result.bad', { role: 'status' });
  const ask = async (event) => {
    event.preventDefault();
    note.textContent = '';
    try {
      list.append(position(await readPosition(user, device.value)));
      device.value = '';
    } catch (error) {
      failed(error, (text) => (note.textContent = text));
    }
  };
  return part('Read positions', list, el('form.join', { onsubmit: ask }, device, el('button.quiet.small', { type: 'submit' }, 'Show')), note);
}

const readPosition = (user, device) => get(ofUser(user, `/read-position?device=${encodeURIComponent(device)}`));

/** The stored notifications, the newest first, in pages. */
function historyPart(user, failed) {
  const list = el('ul.rows', { 'data-testid': 'stored' });
  const note = el('p.hint', { role: 'status', 'data-testid': 'stored-note' });
  const older = button('Older', 'older', () => page(next));
  const whole = part('Stored notifications', list, note, el('div.buttons', {}, older));
  const title = whole.querySelector('h4');
  title.tabIndex = -1;
  const say = (text) => (note.textContent = text);
  let next = null;

  async function retract(id, row) {
    if (!(await confirmed('Take this notification back? No client will read it again.', 'Retract'))) return;
    try {
      await call('DELETE', ofUser(user, `/notifications/${encodeURIComponent(id)}`));
      row.remove();
      say('Retracted.');
      title.focus();
    } catch (error) {
      failed(error, say);
    }
  }

  function stored({ id, event, data, ts }) {
    const row = el('li.row', { 'data-testid': 'notification' },
      el('span', {}, `${event}, ${time(ts)}`),
      el('pre', { tabindex: 0, role: 'group', 'aria-label': `data of ${event}` }, JSON.stringify(data, null, 2)),
      el('div.foot', {}, el('code.hint', {}, id), button('Retract', 'retract', () => retract(id, row))));
    return row;
  }

  async function page(before) {
    try {
      const query = `limit=${PAGE}&order=newest${before === null ? '' : `&before=${encodeURIComponent(before)}`}`;
      const { notifications, next: after } = await get(ofUser(user, `/notifications?${query}`));
      if (before === null) list.replaceChildren();
      list.append(...notifications.map(stored));
      next = after;
      older.hidden = next === null;
      say(list.childElementCount === 0 ? 'None.' : '');
    } catch (error) {
      older.hidden = true;
      failed(error, say);
    }
  }

  return { node: whole, load: () => page(null) };
}

/**
 * One user: presence, connections, read positions, stored notifications, and what an operator may do.
 * @param {(error: Error, say: (text: string) => void) => void} failed
 */
export function userView(failed) {
  let shown = 0; // A later request makes an earlier one's answer stale.

  const say = (text, kind = 'bad') => {
    result.textContent = text;
    result.className = `result ${kind}`;
  };

  async function disconnect(user) {
    if (!(await confirmed(`Close every connection of ${user}? Clients with a valid token may connect again.`, 'Disconnect'))) return;
    try {
      await call('DELETE', ofUser(user, '/connections'));
      await show(user);
      say('Told every instance to close the connections.', 'good');
    } catch (error) {
      failed(error, say);
    }
  }

  async function show(user) {
    const turn = (shown += 1);
    input.value = user;
    say('Loading…', '');
    try {
      const [presence, connections] = await Promise.all([get(ofUser(user, '/presence')), get(ofUser(user, '/connections'))]);
      const devices = new Set(['default', ...connections.connections.map(({ device }) => device)]);
      const positions = await Promise.all([...devices].map((device) => readPosition(user, device)));
      if (turn !== shown) return;
      const history = historyPart(user, failed);
      view.replaceChildren(summary(presence, () => show(user)),
        el('div.columns', {},
          el('div', {}, connectionPart(connections, () => disconnect(user)), history.node),
          el('div', {}, positionPart(user, positions, failed), part('Publish', publishForm(user, history.load, failed)))));
      view.hidden = false;
      say('', '');
      location.replace(`#user=${encodeURIComponent(user)}`);
      view.querySelector('h3').focus();
      await history.load();
    } catch (error) {
      view.hidden = true;
      failed(error, say);
    }
  }

  form.addEventListener('submit', (event) => {
    event.preventDefault();
    show(input.value);
  });
  return {
    show,
    /** The user in `#user=…`, so that a page about one user can be linked. */
    fromAddress() {
      const user = new URLSearchParams(location.hash.slice(1)).get('user');
      if (user) show(user);
    },
  };
}
