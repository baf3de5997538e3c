// The package of the browser SDK, as npm packs it: its metadata, and its uses in a React project, on a server and in Node.
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import test, { after, before } from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { promisify } from 'node:util';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const HERE = path.join(ROOT, 'tests/sdk-package');
const BINARY = path.resolve(ROOT, process.env.GATEWAY_BIN ?? 'target/debug/tidings');
const DEADLINE = { timeout: 90_000 };
const run = promisify(execFile);
let folder;
let tarball;
let project; // A copy of examples/react with the package from its tarball.

const node = (cwd, bin, ...args) => run(process.execPath, [bin, ...args], { cwd, ...DEADLINE });

before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'tidings-package-'));
  const { stdout } = await run('npm', ['pack', '--json', '--pack-destination', folder], { cwd: path.join(ROOT, 'sdk/js') });
  const [packed] = Object.values(JSON.parse(stdout));
  tarball = path.join(folder, packed.filename);
  project = path.join(folder, 'react');
  await cp(path.join(ROOT, 'examples/react'), project, { recursive: true });
  await rm(path.join(project, 'node_modules/tidings'), { recursive: true, force: true });
  await run('npm', ['install', '--no-save', '--offline', '--no-audit', '--no-fund', tarball], { cwd: project, ...DEADLINE });
});

after(() => rm(folder, { recursive: true, force: true }));

test('the tarball holds the modules, their types, the licences, and nothing else', async () => {
  const { stdout } = await run('tar', ['tzf', tarball]);
  assert.deepEqual(stdout.trim().split('\n').map((name) => name.replace('package/', '')).sort(), [
    'LICENSE-APACHE', 'LICENSE-MIT', 'README.md', 'package.json', 'tidings-history.js', 'tidings-inbox.d.ts',
    'tidings-inbox.js', 'tidings-sse.js', 'tidings-storage.js', 'tidings.d.ts', 'tidings.js',
  ]);
  const { dependencies } = JSON.parse(await readFile(path.join(project, 'node_modules/tidings/package.json'), 'utf8'));
  assert.equal(dependencies, undefined);
});

test('publint finds nothing to report', DEADLINE, async () => {
  const { stdout } = await node(HERE, 'node_modules/publint/src/cli.js', 'run', tarball, '--strict');
  assert.match(stdout, /All good!/);
});

test('the types are right for every way to import the package', DEADLINE, async () => {
  await node(HERE, 'node_modules/@arethetypeswrong/cli/dist/index.js', tarball, '--profile', 'esm-only', '--no-emoji');
});

test('a strict TypeScript project compiles with it, and Vite builds it', DEADLINE, async () => {
  await node(project, 'node_modules/typescript/bin/tsc', '--noEmit');
  await node(project, 'node_modules/vite/bin/vite.js', 'build', '--logLevel', 'warn');
  const built = await readdir(path.join(project, 'dist/assets'));
  // What is loaded on demand stays so.
  for (const name of ['tidings-history', 'tidings-sse', 'tidings-storage']) {
    assert.equal(built.filter((file) => file.startsWith(name)).length, 1, built.join());
  }
});

test('a page with it renders on a server, without a window', DEADLINE, async () => {
  await node(project, 'node_modules/vite/bin/vite.js', 'build', '--ssr', 'src/server.tsx', '--outDir', 'server', '--logLevel', 'warn');
  const { render } = await import(pathToFileURL(path.join(project, 'server/server.js')));
  assert.equal(globalThis.window, undefined);
  assert.match(render(), /<tidings-inbox><\/tidings-inbox>.*<p>Connecting…<\/p>/s);
  const { TidingsInbox } = await import(pathToFileURL(path.join(project, 'node_modules/tidings/tidings-inbox.js')));
  assert.equal(typeof TidingsInbox, 'function');
});

test('in Node, it receives with a WebSocket that it is given', DEADLINE, async (t) => {
  const readyFile = path.join(folder, 'ready');
  const listen = ['--listen', '127.0.0.1:0', '--admin-listen', '127.0.0.1:0', '--ready-file', readyFile];
  const gateway = spawn(BINARY, ['serve', '--dev', ...listen], { stdio: 'ignore' });
  t.after(() => gateway.kill('SIGKILL'));
  const ended = once(gateway, 'exit');
  let ready;
  while (!ready) {
    ready = await readFile(readyFile, 'utf8').then(JSON.parse, () => null);
    await Promise.race([new Promise((resolve) => setTimeout(resolve, 50)), ended.then(() => assert.fail('the gateway ended'))]);
  }
  const script = `
    import { Tidings } from 'tidings';
    import WebSocket from ${JSON.stringify(pathToFileURL(createRequire(path.join(HERE, 'x')).resolve('ws')))};
    const token = async () => {
      const response = await fetch('http://${ready.public}/demo/token', { method: 'POST', body: '{"user":"42"}' });
      return (await response.json()).token;
    };
    const client = new Tidings('ws://${ready.public}/ws', { token, WebSocket });
    client.once('welcome', async () => {
      const body = '{"data":"hello","durable":true}';
      await fetch('http://${ready.admin}/v1/users/42/notifications', { method: 'POST', body });
    });
    client.once('notification', (data, { id }) => {
      console.log(data, client.unread, typeof id);
      client.close();
    });`;
  await writeFile(path.join(project, 'node.mjs'), script);
  const { stdout } = await node(project, 'node.mjs');
  assert.equal(stdout, 'hello 1 string\n');
});
