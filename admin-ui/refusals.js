import { el } from './dom.js';
import { count, rate } from './text.js';

const table = document.getElementById('refusals');
const note = document.getElementById('refusals-note');

/** Every code with refusals, the most frequent first. */
export function refusals(history) {
  const samples = history.latest?.get('tidings_refusals_total') ?? [];
  const refused = samples.filter(({ value }) => value > 0).sort((a, b) => b.value - a.value);
  table.hidden = refused.length === 0;
  note.hidden = refused.length > 0;
  table.tBodies[0].replaceChildren(...refused.map(({ labels: { code }, value }) => el('tr', {},
    el('th', { scope: 'row' }, el('code', {}, code)),
    el('td.number', {}, count(value)),
    el('td.number', {}, rate(history.rate('tidings_refusals_total', { code }))))));
}
