import { el } from './dom.js';

/** A simulated network for one client, with a switch: when off, its socket is closed and no other can be opened. */
export function network() {
  let isOn = true;
  const sockets = new Set(); // Two, while one connection replaces another.
  class Switched extends WebSocket {
    constructor(...address) {
      super(...address);
      sockets.add(this);
      this.addEventListener('close', () => sockets.delete(this));
    }
  }
  return {
    WebSocket: Switched,
    isOn: () => isOn,
    set(on) {
      isOn = on;
      if (!on) for (const socket of sockets) socket.close();
    },
  };
}

/** When switched on again, a waiting client retries at once. */
export function networkSwitch(user, net, client) {
  const label = { 'aria-label': `Network of ${user}`, 'data-testid': 'network' };
  const button = el('button.switch', { type: 'button', role: 'switch', 'aria-checked': 'true', ...label }, 'Network');
  button.addEventListener('click', () => {
    net.set(!net.isOn());
    button.setAttribute('aria-checked', String(net.isOn()));
    if (net.isOn()) client.retryNow();
  });
  return button;
}
