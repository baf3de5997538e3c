// Numbers and times as people read them.
const number = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const small = new Intl.NumberFormat(undefined, { maximumSignificantDigits: 2 });

export const UNKNOWN = '–';

export const count = (value) => (value === undefined ? UNKNOWN : number.format(value));

export const rate = (value) => (value === undefined ? UNKNOWN : value >= 10 || value === 0 ? number.format(value) : small.format(value));

export function bytes(value) {
  if (value === undefined) return UNKNOWN;
  const units = ['B', 'KiB', 'MiB', 'GiB'];
  let at = 0;
  for (; value >= 1_024 && at < units.length - 1; at += 1) value /= 1_024;
  return `${small.format(value)} ${units[at]}`;
}

export function seconds(value) {
  if (value === undefined) return UNKNOWN;
  if (value === Infinity) return 'over 10 s';
  if (value < 0.001) return `${small.format(value * 1e6)} µs`;
  return value < 1 ? `${small.format(value * 1e3)} ms` : `${small.format(value)} s`;
}

export function duration(total) {
  const [days, hours, minutes] = [Math.floor(total / 86_400), Math.floor(total / 3_600) % 24, Math.floor(total / 60) % 60];
  if (days > 0) return `${days} d ${hours} h`;
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min` : `${Math.floor(total)} s`;
}

/** The local date and time, to the second. */
export const time = (ms) => new Date(ms).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'medium' });

export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;
