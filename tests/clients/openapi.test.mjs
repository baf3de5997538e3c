// Clients generated from docs/openapi.json: each generator must produce every call.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import { scenario } from '../browser/support.mjs';

const ROOT = path.join(import.meta.dirname, '../..');
const DOCUMENT = path.join(ROOT, 'docs/openapi.json');
const TOOLS = path.join(import.meta.dirname, 'node_modules/.bin');
const PYTHON = path.join(ROOT, process.env.CARGO_TARGET_DIR ?? 'target', 'clients/bin');

const run = promisify(execFile);

// Both generators compile thousands of lines.
const TEST_MS = 180_000;

const { paths } = JSON.parse(await readFile(DOCUMENT, 'utf8'));
const calls = Object.values(paths)
  .flatMap((item) => Object.values(item))
  .flatMap(({ operationId }) => operationId ?? []);

scenario('openapi-typescript has a type for every call', async (stage) => {
  const folder = await stage.folder();
  await run(path.join(TOOLS, 'openapi-typescript'), [DOCUMENT, '--output', path.join(folder, 'tidings.d.ts')]);
  const use = (call) => `export type ${call} = operations['${call}']['responses'];`;
  const source = ["import type { operations } from './tidings.d.ts';", ...calls.map(use)].join('\n');
  await writeFile(path.join(folder, 'calls.ts'), source);
  const check = ['--noEmit', '--strict', '--allowImportingTsExtensions', '--module', 'nodenext'];
  await run(path.join(TOOLS, 'tsc'), [...check, path.join(folder, 'calls.ts')]);
}, TEST_MS);

scenario('openapi-python-client generates every call, and an instance answers them', async (stage) => {
  const folder = await stage.folder();
  // It formats the code with a program that lies beside it.
  const env = { ...process.env, PATH: `${PYTHON}:${process.env.PATH}` };
  const output = ['--meta', 'none', '--output-path', path.join(folder, 'tidings')];
  const { stdout } = await run(path.join(PYTHON, 'openapi-python-client'), ['generate', '--path', DOCUMENT, ...output], { env });
  assert.doesNotMatch(stdout, /warning|error/i);

  const gateway = await stage.gateway();
  const script = path.join(import.meta.dirname, 'openapi_client.py');
  const used = await run(path.join(PYTHON, 'python'), [script, `http://${gateway.admin}`], {
    env: { ...process.env, PYTHONPATH: folder, CALLS: calls.join(' ') },
  });
  assert.equal(used.stdout.trim(), 'hello from a generated client');
}, TEST_MS);
