#!/usr/bin/env bash
# A server that disconnects a client of python-socketio 5.18.1 while its connect handler runs is not heard.
#
# The client calls the connect handler before it counts as connected, and drops a DISCONNECT packet of the server until then.
# A server that disconnects a socket as soon as it has let it in (socket.disconnect() of Socket.IO 4.8.4) does not reach it:
# the client has no disconnect event, and `connected` stays true on a connection without a namespace. If the handler has
# returned before, the disconnect event comes with its reason. Needs Node.js 20 and Python 3.10 or newer.
set -euo pipefail

dir=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server"; rm -rf "$dir"' EXIT
cd "$dir"
npm install --silent --no-audit --no-fund socket.io@4.8.4
python3 -m venv python
python/bin/pip install --quiet --disable-pip-version-check python-socketio==5.18.1 python-engineio==4.15.1 websocket-client==1.9.2

# Disconnects each client after the time that it asks for, and prints its port.
cat >server.mjs <<'NODE'
import { createRequire } from 'node:module';
import { Server } from 'socket.io';

const server = new Server({ serveClient: false });
server.on('connection', (socket) => setTimeout(() => socket.disconnect(), socket.handshake.auth.disconnectAfterMs));
server.listen(0, { host: '127.0.0.1' });
server.httpServer.on('listening', () => {
  console.log(server.httpServer.address().port, createRequire(import.meta.url)('socket.io/package.json').version);
});
NODE
mkfifo started
node server.mjs >started &
server=$!
read -r port version <started
echo "socket.io $version"

cat >client.py <<'PYTHON'
import importlib.metadata
import sys
import threading
import time

import socketio

HANDLER_S = 1
print("python-socketio", importlib.metadata.version("python-socketio"))


def reason_after(disconnect_after_ms):
    """The reason of the disconnect event, or None without one; and whether the client counts as connected."""
    client, reasons, ended = socketio.Client(reconnection=False), [], threading.Event()

    @client.event
    def connect():
        time.sleep(HANDLER_S)

    @client.event
    def disconnect(reason):
        reasons.append(reason)
        ended.set()

    client.connect(sys.argv[1], auth={"disconnectAfterMs": disconnect_after_ms}, transports=["websocket"], wait_timeout=10)
    ended.wait(disconnect_after_ms / 1000 + 2)
    seen = (reasons[0] if reasons else None, client.connected)
    client.shutdown()
    return seen


for name, after_ms, expected in [
    ("after the handler has returned", 3000, ("server disconnect", False)),
    ("while the handler runs", 300, (None, True)),
]:
    seen = reason_after(after_ms)
    print(f"{name}: disconnect event {seen[0]!r}, connected {seen[1]}")
    assert seen == expected, f"expected {expected}"
PYTHON
python/bin/python client.py "http://127.0.0.1:$port"
echo "as described"
