// What a page loads: the SDK, its component, and, only where no WebSocket opens, its event stream.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import test from 'node:test';
import { gzipSync } from 'node:zlib';
import { transform } from 'esbuild';

for (const [file, most] of [['tidings.js', 5_000], ['tidings-sse.js', 2_500], ['tidings-inbox.js', 6_000],
  ['tidings-history.js', 700], ['tidings-storage.js', 700]]) {
  test(`${file} is at most ${most.toLocaleString()} bytes, minified and gzipped`, async () => {
    const source = await readFile(new URL(`../${file}`, import.meta.url), 'utf8');
    const { code } = await transform(source, { minify: true, format: 'esm' });
    const { length } = gzipSync(code, { level: 9 });
    assert.ok(length <= most, `${length} bytes`);
  });
}
