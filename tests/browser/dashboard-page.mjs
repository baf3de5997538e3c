// The dashboard of deploy/grafana as a page: every panel, with the answers of a Prometheus to its own queries. It stands in for
// Grafana in the picture, and knows only what that dashboard uses.
import { readFile } from 'node:fs/promises';

const DASHBOARD = new URL('../../deploy/grafana/tidings.json', import.meta.url);
const COLOURS = ['#3871dc', '#e0752d', '#37872d', '#b877d9', '#c4162a', '#1f9e9e'];
const PLOT = { width: 400, height: 130 };

const decimals = (value) => (Math.abs(value) >= 100 || Number.isInteger(value) ? 0 : 2);
const short = (value, unit = '') => `${value.toFixed(decimals(value))}${unit}`;
const UNITS = {
  short,
  ops: (value) => short(value, '/s'),
  percentunit: (value) => short(value * 100, ' %'),
  bytes: (value) => (value < 1_048_576 ? short(value / 1_024, ' KiB') : short(value / 1_048_576, ' MiB')),
  s: (value) => (value === 0 ? '0' : value < 1 ? short(value * 1_000, ' ms') : short(value, ' s')),
};

const escaped = (text) => String(text).replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);

/** Answers one query over a time, as Grafana's server does: `start` and `end` in seconds. */
async function ask(prometheus, query, { start, end }) {
  const parameters = new URLSearchParams({ query, start, end, step: 1 });
  const { status, error, data } = await (await fetch(`${prometheus}/api/v1/query_range?${parameters}`)).json();
  if (status !== 'success') throw new Error(`${query}: ${error}`);
  const points = (values) => values.map(([at, value]) => [at, Number(value)]).filter(([, value]) => Number.isFinite(value));
  return data.result.map(({ metric, values }) => ({ metric, points: points(values) }));
}

async function series(prometheus, targets, variables, time) {
  const answers = await Promise.all(targets.map(async ({ expr, legendFormat }) => {
    const query = expr.replace(/\$\w+/g, (name) => variables[name]);
    const legend = (metric) => (legendFormat ?? '').replace(/\{\{(\w+)\}\}/g, (_, label) => metric[label]);
    return (await ask(prometheus, query, time)).map(({ metric, points }) => ({ metric, points, name: legend(metric) }));
  }));
  return answers.flat();
}

function plot(lines, unit, { start, end }) {
  const top = Math.max(...lines.flatMap(({ points }) => points.map(([, value]) => value)), 0) || 1;
  const x = (at) => (((at - start) / (end - start)) * PLOT.width).toFixed(1);
  const y = (value) => (PLOT.height * (1 - 0.9 * (value / top))).toFixed(1);
  const path = ({ points }, colour) =>
    `<polyline points="${points.map(([at, value]) => `${x(at)},${y(value)}`).join(' ')}" stroke="${colour}"/>`;
  const label = (part) => `<span style="bottom:${part * 88}%">${escaped(unit(top * part))}</span>`;
  const key = ({ name }, at) => `<li style="color:${COLOURS[at % COLOURS.length]}">${escaped(name)}</li>`;
  return `<div class="axis">${[0, 1].map(label).join('')}</div>
    <svg viewBox="0 0 ${PLOT.width} ${PLOT.height}" preserveAspectRatio="none">
    ${lines.map((line, at) => path(line, COLOURS[at % COLOURS.length])).join('')}</svg>
    <ul>${lines.map(key).join('')}</ul>`;
}

function stat([line], unit, { thresholds }) {
  const value = line?.points.at(-1)?.[1];
  if (value === undefined) return '<strong>–</strong>';
  const step = thresholds?.steps.findLast((step) => step.value === null || value >= step.value);
  return `<strong style="color:${step?.color ?? 'inherit'}">${escaped(unit(value))}</strong>`;
}

function table(lines) {
  const row = ({ metric }) => `<tr>${['instance', 'version', 'commit'].map((name) => `<td>${escaped(metric[name])}`).join('')}`;
  return `<table>${lines.map(row).join('')}</table>`;
}

async function panel(prometheus, { type, title, gridPos, targets = [], fieldConfig }, variables, time) {
  const { x, y, w, h } = gridPos;
  const place = `grid-area:${y + 1} / ${x + 1} / span ${h} / span ${w}`;
  if (type === 'row') return `<h2 style="${place}">${escaped(title)}</h2>`;
  const lines = await series(prometheus, targets, variables, time);
  const unit = UNITS[fieldConfig.defaults.unit ?? 'short'];
  const draw = { stat: () => stat(lines, unit, fieldConfig.defaults), table: () => table(lines) };
  const body = (draw[type] ?? (() => plot(lines, unit, time)))();
  return `<section class="${type}" style="${place}"><h3>${escaped(title)}</h3>${body}</section>`;
}

/** The whole page, as HTML. `variables` are those of the dashboard, by name. */
export async function dashboardPage(prometheus, variables, time) {
  const { title, panels } = JSON.parse(await readFile(DASHBOARD, 'utf8'));
  const drawn = await Promise.all(panels.map((one) => panel(prometheus, one, variables, time)));
  return `<!doctype html><meta charset="utf-8"><title>${title}</title><style>
    body { margin: 8px; font: 11px system-ui, sans-serif; background: #f4f5f5; color: #24292e; }
    main { display: grid; grid-template-columns: repeat(24, 1fr); grid-auto-rows: 16px; gap: 4px; }
    h1 { font-size: 15px; margin: 0 0 6px; } h2 { font-size: 12px; margin: 2px 0; } h3 { font-size: 11px; margin: 0 0 4px; }
    section { background: #fff; border: 1px solid #dcdedf; padding: 4px 6px; display: grid; overflow: hidden;
      grid-template: auto 1fr auto / 44px 1fr; }
    h3, ul, strong, table { grid-column: 1 / -1; } strong { font-size: 20px; text-align: center; font-weight: 500; }
    .axis { position: relative; } .axis span { position: absolute; right: 4px; color: #6a6f73; font-size: 9px; white-space: nowrap; }
    svg { width: 100%; height: 100%; min-height: 0; border-left: 1px solid #ccc; border-bottom: 1px solid #ccc; }
    svg { shape-rendering: crispEdges; }
    polyline { fill: none; stroke-width: 1.3; vector-effect: non-scaling-stroke; }
    ul { margin: 3px 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0 8px; list-style: none; font-size: 9px; max-height: 24px; }
    li::before { content: "— "; } td { padding: 2px 6px 2px 0; } table { align-self: start; }
  </style><h1>${title}</h1><main>${drawn.join('')}</main>`;
}
