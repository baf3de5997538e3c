// The clients, unmodified, as their registries have them; package-lock.json and requirements.txt pin the versions.
// `recovers`: it resumes by itself; `showsCode`: it shows the application the code with which a connection was closed;
// `disorders`: it runs the handler of each event in a thread, in any order.

// CLIENTS=sse or CLIENTS=js-4.8 runs only the rows whose dialect is that or whose name contains it.
const only = process.env.CLIENTS ?? '';
const chosen = ({ name, dialect }) => dialect === only || name.includes(only);

const BOTH = [['default'], ['websocket', ['websocket']]];
const SOCKET_IO = [
  { version: '4.8', recovers: true, showsCode: true },
  { version: '4.6', recovers: true, showsCode: true },
  { version: '4.1', recovers: false },
  { version: '4.0', recovers: false },
  { version: '3.1', recovers: false },
];

// By default a client of socket.io starts with polling, and upgrades to a websocket.
const javascript = SOCKET_IO.flatMap(({ version, ...shows }) => BOTH.map(([mode, transports]) => (
  { name: `js-${version}-${mode}`, runs: 'socket.io', module: `socket.io-client-${version}`, transports, ...shows })));
const pollingOnly = { ...javascript[0], name: 'js-4.8-polling', transports: ['polling'], showsCode: false };
const python = BOTH.map(([mode, transports]) => (
  { name: `python-${mode}`, runs: 'python-socketio', transports, recovers: false, disorders: true }));

export const SOCKET_IO_CLIENTS = [...javascript, pollingOnly, ...python]
  .map((row) => ({ ...row, dialect: 'socketio' })).filter(chosen);

export const SSE_CLIENTS = [
  { name: 'chromium', runs: 'page' },
  { name: 'firefox', runs: 'page' },
  { name: 'npm-eventsource', runs: 'eventsource' },
  { name: 'httpx-sse', runs: 'httpx-sse' },
].map((row) => ({ ...row, dialect: 'sse', recovers: true, showsCode: true })).filter(chosen);

export const CLIENTS = [...SOCKET_IO_CLIENTS, ...SSE_CLIENTS];
