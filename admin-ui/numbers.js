import { el } from './dom.js';
import { sum } from './metrics.js';
import { bytes, count, rate, seconds } from './text.js';

const list = document.getElementById('numbers');
const SVG = 'http://www.w3.org/2000/svg';

const by = (transport) => (of) => sum(of.latest, 'tidings_transport_connections', { transport });
const value = (name) => (of) => sum(of.latest, name);
const rateOf = (name) => (of) => of.rate(name);

/** Label, text, and the metric whose course is drawn: a counter's rates, or a gauge's values. */
const NUMBERS = [
  ['Connections', (of) => count(sum(of.latest, 'tidings_transport_connections')), (of) => of.values('tidings_transport_connections')],
  ['WebSocket', (of) => count(by('websocket')(of))],
  ['Server-Sent Events', (of) => count(by('sse')(of))],
  ['socket.io', (of) => count(by('socketio')(of))],
  ['Users', (of) => count(value('tidings_users')(of))],
  ['Opened per s', (of) => rate(rateOf('tidings_connections_opened_total')(of)), (of) => of.rates('tidings_connections_opened_total')],
  ['Closed per s', (of) => rate(rateOf('tidings_connections_closed_total')(of)), (of) => of.rates('tidings_connections_closed_total')],
  ['Refused per s', (of) => rate(rateOf('tidings_refusals_total')(of)), (of) => of.rates('tidings_refusals_total')],
  ['Received per s', (of) => rate(rateOf('tidings_messages_received_total')(of)), (of) => of.rates('tidings_messages_received_total')],
  ['Delivered per s', (of) => rate(rateOf('tidings_deliveries_total')(of)), (of) => of.rates('tidings_deliveries_total')],
  ['Delivery, p99', (of) => seconds(of.quantile(0.99, 'tidings_delivery_seconds'))],
  ['Dropped per s', (of) => rate(rateOf('tidings_deliveries_dropped_total')(of)), (of) => of.rates('tidings_deliveries_dropped_total')],
  ['Waiting for slow clients', (of) => bytes(value('tidings_backlog_bytes')(of))],
  ['Delay behind Redis', (of) => seconds(value('tidings_backplane_lag_seconds')(of)), (of) => of.values('tidings_backplane_lag_seconds')],
  ['Outbox, waiting', (of) => count(value('tidings_outbox_lag')(of))],
  ['Memory', (of) => bytes(value('process_resident_memory_bytes')(of))],
];

const WIDTH = 100;
const HEIGHT = 24;

/** A line without axes: whether a number rises, falls or jumps. */
function line() {
  const svg = document.createElementNS(SVG, 'svg');
  for (const [name, text] of [['viewBox', `0 0 ${WIDTH} ${HEIGHT}`], ['preserveAspectRatio', 'none'], ['aria-hidden', 'true']]) {
    svg.setAttribute(name, text);
  }
  svg.append(document.createElementNS(SVG, 'polyline'));
  return svg;
}

function draw(svg, values) {
  const most = Math.max(...values, 1e-9);
  const step = WIDTH / Math.max(values.length - 1, 1);
  const points = values.map((each, at) => `${(at * step).toFixed(1)},${(HEIGHT - 1 - (each / most) * (HEIGHT - 2)).toFixed(1)}`);
  svg.firstChild.setAttribute('points', values.length > 1 ? points.join(' ') : '');
}

const tiles = NUMBERS.map(([label, text, course]) => {
  const shown = el('dd', {});
  const svg = course ? line() : null;
  return { text, course, shown, svg, node: el('div', {}, el('dt', {}, label), shown, svg && el('dd.line', { 'aria-hidden': 'true' }, svg)) };
});
list.append(...tiles.map(({ node }) => node));

/** @param {import('./metrics.js').History} history */
export function numbers(history) {
  for (const { text, course, shown, svg } of tiles) {
    shown.textContent = text(history);
    if (course) draw(svg, course(history));
  }
}
