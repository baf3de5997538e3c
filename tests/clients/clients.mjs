// Starts each client of rows.mjs as its own documentation does, with a function that gets a new token at each connect.
import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { EventSource } from 'eventsource';

import { SOCKET_IO_CLIENTS } from './rows.mjs';

const require = createRequire(import.meta.url);
const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const PYTHON = path.resolve(here('../..'), process.env.CARGO_TARGET_DIR ?? 'target', 'clients/bin/python');
const get = async (url) => (await fetch(url)).text();
// Loaded before any client starts: on a busy machine this takes seconds, in which no client answers its server.
const names = new Set(SOCKET_IO_CLIENTS.flatMap(({ module }) => module ?? []));
const LIBRARIES = new Map([...names].map((name) => [name, require(name)]));

/** socket.io-client, of any version. */
function socketIo({ module, transports }, { url, tokenUrl, auth: more, log }) {
  const auth = (send) => get(tokenUrl).then((token) => send({ token, ...more() }));
  const socket = LIBRARIES.get(module).io(url, { auth, forceNew: true, ...(transports && { transports }) });
  socket.on('connect', () => log.add({ is: 'connected', recovered: socket.recovered }));
  socket.onAny((name, ...args) => log.add({ is: 'event', name, args }));
  socket.on('disconnect', (reason, details) => {
    const code = details?.context?.code;
    log.add({ is: reason.startsWith('io ') ? 'ended' : 'lost', reason, code });
  });
  socket.on('connect_error', ({ type, message, data }) => {
    // After an answer to CONNECT the client stops; it tries a transport again.
    const again = type === 'TransportError' || message === 'timeout';
    log.add(again ? { is: 'attempt_failed', message } : { is: 'ended', code: data?.code, reason: message });
  });
  return { socket, close: () => socket.close() };
}

function pythonProcess(script, args, log) {
  const child = spawn(PYTHON, [here(script), ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  createInterface(child.stdout).on('line', (line) => log.add(JSON.parse(line)));
  const ended = new Promise((resolve) => child.on('close', resolve));
  return { close: () => (child.kill('SIGKILL'), ended) };
}

/** npm's eventsource, with a token in a header. */
function eventSource(_row, { url, tokenUrl, log }) {
  const authorized = async (input, init) => {
    const Authorization = `Bearer ${await get(tokenUrl)}`;
    return fetch(input, { ...init, headers: { ...init.headers, Authorization } });
  };
  const source = new EventSource(`${url}/events`, { fetch: authorized });
  let welcomed = false;
  let told; // the code with which the server ends the stream
  source.onmessage = ({ data, lastEventId: id }) => {
    const frame = JSON.parse(data);
    if (frame.type === 'welcome') {
      welcomed = true;
      log.add({ is: 'connected', recovered: frame.recovered });
    } else if (frame.type === 'event') {
      log.add({ is: 'event', name: frame.event, args: 'id' in frame ? [frame.data, frame.id] : [frame.data], id });
    } else if (frame.type === 'error') {
      told = frame.code;
    }
  };
  source.onerror = ({ code: status, message }) => {
    if (source.readyState === EventSource.CLOSED) log.add({ is: 'ended', code: status, reason: message });
    else log.add({ is: welcomed ? 'lost' : 'attempt_failed', code: told, reason: message });
    welcomed = false;
    told = undefined;
  };
  return { close: () => source.close() };
}

/** An EventSource in the page of a browser. */
function pageStream({ name }, { url, tokenUrl, log, browsers }) {
  const page = browsers.get(name);
  const stream = page.open(log, { url, tokenUrl });
  return { close: () => page.close(stream) };
}

const START = {
  'socket.io': socketIo,
  'python-socketio': ({ transports = [] }, { url, tokenUrl, log }) =>
    pythonProcess('socketio_client.py', [url, tokenUrl, ...transports], log),
  'httpx-sse': (_row, { url, tokenUrl, log }) => pythonProcess('sse_client.py', [url, tokenUrl], log),
  eventsource: eventSource,
  page: pageStream,
};

/** Starts a client of this row; `log` gets all that it reports. */
export const startClient = (row, options) => START[row.runs](row, options);

/** A browser's page, and the streams that are open in it. */
export class Page {
  #socket;
  #logs = new Map();

  constructor(socket) {
    this.#socket = socket;
    socket.on('message', (text) => {
      const { stream, entry } = JSON.parse(text);
      this.#logs.get(stream).add(entry);
    });
  }

  open(log, options) {
    const stream = this.#logs.size;
    this.#logs.set(stream, log);
    this.#socket.send(JSON.stringify({ does: 'open', stream, ...options }));
    return stream;
  }

  close(stream) {
    this.#socket.send(JSON.stringify({ does: 'close', stream }));
  }
}
