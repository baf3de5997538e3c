import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import test from 'node:test';
import { fileURLToPath } from 'node:url';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const TSC = here('../node_modules/typescript/bin/tsc');

const skip = !existsSync(TSC) && 'typescript is not installed';

test('the types are clean under the strictest settings', { skip }, async () => {
  const settings = [
    '--noEmit', '--strict', '--exactOptionalPropertyTypes', '--noUncheckedIndexedAccess',
    '--target', 'es2022', '--lib', 'es2022,dom', '--module', 'nodenext', '--moduleResolution', 'nodenext',
  ];
  const output = await new Promise((resolve) => {
    execFile(process.execPath, [TSC, ...settings, here('../types/usage.ts')], (error, stdout) => resolve(stdout));
  });
  assert.equal(output, '');
});
