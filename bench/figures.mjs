// Computes figures from raw lines: medians, spreads, ratios within one repeat, and whether a target was met.

import { rowsOf } from './sessions.mjs';

// A server below this was waiting for the load generator.
const BUSY = 90;

export function spread(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  const median = (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2;
  return { median, min: sorted[0], max: sorted.at(-1), count: sorted.length };
}

export function labelOf({ server, variant }) {
  return variant ? `${server}, ${variant}` : server;
}

// The values of one row: repeat => value.
function series(scenario, lines, row, key) {
  const metric = scenario.metrics.find((candidate) => candidate.key === key);
  const mine = lines.filter((line) => line.server === row.server && line.variant === row.variant);
  return new Map(mine.map((line) => [line.repeat, metric.of(line.report, line.extra)]));
}

// Only for repeats in which both were measured: an interrupted repeat lacks some servers.
function ratios(ours, theirs) {
  return [...ours].filter(([repeat]) => theirs.has(repeat)).map(([repeat, value]) => value / theirs.get(repeat));
}

export function tableOf(scenario, lines) {
  return rowsOf(scenario).map((row) => ({
    label: labelOf(row),
    cells: scenario.metrics.map(({ key }) => spread([...series(scenario, lines, row, key).values()])),
  }));
}

// Each row relative to the reference row of the scenario, within a repeat.
export function ratiosOf(scenario, lines) {
  const rows = rowsOf(scenario);
  const other = rows.find(({ variant }) => variant === scenario.against);
  const cellOf = (row, key) => {
    return spread(ratios(series(scenario, lines, row, key), series(scenario, lines, other, key)));
  };
  return rows
    .filter((row) => row !== other)
    .map((row) => ({ label: labelOf(row), cells: scenario.metrics.map(({ key }) => cellOf(row, key)) }));
}

function verdictOf(target, { median, min, max, count }) {
  const most = target.times ?? target.most;
  const keeps = target.better === 'less' ? (value) => value <= most : (value) => value >= most;
  // One repeat shows no spread, and so is weak evidence.
  if (count === 1) return keeps(median) ? 'met once' : 'missed once';
  if (keeps(min) && keeps(max)) return 'met';
  return keeps(median) ? 'met in the median' : 'missed';
}

export function promisesOf(scenario, lines) {
  return scenario.targets.map((target) => {
    const metric = scenario.metrics.find(({ key }) => key === target.metric);
    const values = series(scenario, lines, { server: 'tidings', variant: target.of ?? '' }, target.metric);
    const sign = target.better === 'less' ? '≤' : '≥';
    const what = target.of ? `${metric.name}, ${target.of}` : metric.name;
    if (!target.against) {
      const found = spread([...values.values()]);
      return { what, promised: `${sign} ${target.most}`, unit: metric.unit, found, verdict: verdictOf(target, found) };
    }
    const other = target.of ? { server: 'tidings', variant: target.against } : { server: target.against, variant: '' };
    const others = series(scenario, lines, other, target.metric);
    const found = spread(ratios(values, others));
    const busy = target.needsBusy ? spread([...series(scenario, lines, other, 'busy').values()]).median : 100;
    const verdict = busy < BUSY ? `undecided: ${target.against} was not the bottleneck` : verdictOf(target, found);
    return { what, promised: `${sign} ${target.times} × ${target.against}`, unit: '×', found, verdict };
  });
}
