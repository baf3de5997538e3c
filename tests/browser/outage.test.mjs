// The demo page while its instance is stopped and restarted.
import assert from 'node:assert/strict';
import { online, scenario, signIn } from './support.mjs';

/** The browser's own messages about a server that does not answer, or that is stopping. */
const OUTAGE = /^(WebSocket connection to|Failed to load resource: (net::ERR_|.* status of 503))/;

async function comesBack(stage, signal, expected) {
  const gateway = await stage.gateway();
  const page = await stage.page(gateway.url, { mayLog: OUTAGE });
  const mine = await signIn(page, '42');
  await gateway.publish('42', { title: 'Before' });
  await mine.row('Before');

  const state = page.getByTestId('state');
  const restarting = page.getByText('The gateway is being restarted.').waitFor();
  const counting = state.filter({ hasText: /^Reconnecting in \d+ s$/ }).waitFor();
  assert.equal(await gateway.end(signal), expected);
  await counting;
  if (signal === 'SIGTERM') await restarting;
  else restarting.catch(() => {});
  await page.getByTestId('retry-now').waitFor();

  const again = await stage.gateway({ listen: gateway.public });
  await mine.is('live');
  assert.equal(await state.textContent(), 'Live');
  await again.publish('42', { title: 'After' });
  await mine.row('After');
  assert.deepEqual(await mine.titles(), ['After', 'Before']);
  await online(page, '42');
}

scenario('the page waits for a killed instance, with a countdown, and reconnects', (stage) =>
  comesBack(stage, 'SIGKILL', 'SIGKILL'));

scenario('an instance that stops closes the connection, and the page reconnects', (stage) =>
  comesBack(stage, 'SIGTERM', 0));
