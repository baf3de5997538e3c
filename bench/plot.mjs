// Bar charts as SVG, readable on light and dark pages.

import { figure } from './text.mjs';

const WIDTH = 720;
const LEFT = 190;
const RIGHT = 150;
const BAR = 18;
const ROW = 26;
const HEAD = 34;

const STYLE = `
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .head { font-weight: 600 }
  .bar { fill: #8c959f }
  .ours { fill: #0969da }
  .range { stroke: #1f2328; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .bar { fill: #6e7681 }
    .ours { fill: #4493f8 }
    .range { stroke: #e6edf3 }
  }`;

const escape = (text) => text.replace(/[&<>]/g, (sign) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[sign]);

function panel({ name, unit, bars }, top) {
  const most = Math.max(...bars.map(({ max }) => max), Number.MIN_VALUE);
  const x = (value) => (LEFT + (Math.max(value, 0) / most) * (WIDTH - LEFT - RIGHT)).toFixed(1);
  const parts = [`<text class="head" x="0" y="${top + 16}">${escape(unit ? `${name} (${unit})` : name)}</text>`];
  bars.forEach(({ label, median, min, max }, row) => {
    const y = top + HEAD - 8 + row * ROW;
    const middle = y + BAR / 2;
    const ours = label.startsWith('tidings') ? ' ours' : '';
    parts.push(
      `<text x="${LEFT - 8}" y="${y + 14}" text-anchor="end">${escape(label)}</text>`,
      `<rect class="bar${ours}" x="${LEFT}" y="${y}" width="${(x(median) - LEFT).toFixed(1)}" height="${BAR}" rx="2"/>`,
      `<line class="range" x1="${x(min)}" x2="${x(max)}" y1="${middle}" y2="${middle}"/>`,
      `<text x="${Number(x(max)) + 8}" y="${y + 14}">${figure(median)}</text>`,
    );
  });
  return parts.join('\n');
}

// Bars are medians; lines span the minimum to the maximum of all repeats.
export function plot(title, panels) {
  let top = 0;
  const drawn = panels.map((one) => {
    const text = panel(one, top);
    top += HEAD + one.bars.length * ROW;
    return text;
  });
  const size = `viewBox="0 0 ${WIDTH} ${top}" width="${WIDTH}" height="${top}"`;
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size} role="img">
<title>${escape(title)}</title>
<style>${STYLE}</style>
${drawn.join('\n')}
</svg>
`;
}
