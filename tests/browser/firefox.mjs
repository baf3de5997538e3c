// A real Firefox, driven over WebDriver BiDi: playwright drives only a Firefox of its own.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { until } from './support.mjs';

const { WebSocket } = createRequire(new URL('../../sdk/js/package.json', import.meta.url))('ws');

// No page of its own at the first start, no update, nothing reported.
const PREFERENCES = {
  'app.update.enabled': false,
  'browser.aboutwelcome.enabled': false,
  'browser.shell.checkDefaultBrowser': false,
  'datareporting.policy.dataSubmissionEnabled': false,
  'network.captive-portal-service.enabled': false,
  'network.connectivity-service.enabled': false,
};

const START_MS = 60_000;

let started;
let child;
let stopping = async () => {};
process.on('exit', () => child?.kill('SIGKILL'));

async function start() {
  const command = ['/usr/bin/firefox-esr', '/usr/bin/firefox'].find(existsSync);
  assert.ok(command, 'no Firefox (scripts/setup)');
  const profile = await mkdtemp(path.join(tmpdir(), 'tidings-firefox-'));
  const lines = Object.entries(PREFERENCES).map(([name, value]) => `user_pref("${name}", ${value});\n`);
  await writeFile(path.join(profile, 'user.js'), lines.join(''));
  const args = ['--headless', '--no-remote', '--remote-debugging-port', '0', '--profile', profile];
  child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  stopping = async () => {
    child.kill('SIGKILL');
    await once(child, 'close');
    await rm(profile, { recursive: true, force: true, maxRetries: 5 });
  };
  const address = new Promise((resolve) => {
    createInterface(child.stderr).on('line', (line) => {
      const [, found] = /BiDi listening on (ws:\S+)/.exec(line) ?? [];
      if (found) resolve(found);
    });
  });
  const late = AbortSignal.timeout(START_MS);
  const url = await Promise.race([address, once(late, 'abort').then(() => assert.fail('Firefox does not listen'))]);
  return { call: await session(`${url}/session`) };
}

/** Returns a function that sends one command, and resolves with its result. */
async function session(url) {
  const socket = new WebSocket(url);
  const pending = new Map();
  let last = 0;
  socket.on('message', (text) => {
    const { type, id, result, error, message } = JSON.parse(text);
    if (!pending.has(id)) return; // An event.
    const { resolve, reject } = pending.get(id);
    pending.delete(id);
    if (type === 'success') resolve(result);
    else reject(new Error(`${error}: ${message}`));
  });
  await once(socket, 'open');
  const call = (method, params = {}) => new Promise((resolve, reject) => {
    last += 1;
    pending.set(last, { resolve, reject });
    socket.send(JSON.stringify({ id: last, method, params }));
  });
  await call('session.new', { capabilities: {} });
  return call;
}

/** Not within the time of a test: it may take half a minute on a busy machine. */
export async function startFirefox() {
  started ??= start();
  await started;
}

export async function stopFirefox() {
  await stopping();
}

/** A tab with a page. `beside` is another tab, whose storage, locks and channels it shares; else it has its own. */
export async function firefoxTab(stage, url, beside) {
  const { call } = await started;
  const { userContext } = beside ?? (await call('browser.createUserContext'));
  const { context } = await call('browsingContext.create', { type: 'tab', userContext });
  await call('browsingContext.navigate', { context, url, wait: 'complete' });
  const evaluate = async (expression) => {
    const target = { context };
    const given = { expression: `JSON.stringify(${expression})`, target, awaitPromise: true };
    const { result, exceptionDetails } = await call('script.evaluate', given);
    assert.equal(exceptionDetails, undefined, exceptionDetails?.text);
    return result.type === 'undefined' ? undefined : JSON.parse(result.value);
  };
  const close = () => call('browsingContext.close', { context });
  stage.onClose(() => close().catch(() => {})); // The test may have closed it.
  return { userContext, evaluate, holds: (condition) => until(condition, () => evaluate(condition)), close };
}
