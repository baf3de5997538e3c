"""A python-socketio client. It asks for a token at each connect, and prints a line of JSON for all that it learns.

usage: socketio_client.py URL TOKEN_URL [TRANSPORT...]
"""
import json
import sys
import threading
import time
import urllib.request

import socketio

url, token_url, *transports = sys.argv[1:]
client = socketio.Client()
lock = threading.Lock()  # The client runs each handler in a thread of its own.


def report(kind, **more):
    with lock:
        print(json.dumps({"is": kind, **more}), flush=True)


def auth():
    with urllib.request.urlopen(token_url, timeout=5) as response:
        return {"token": response.read().decode()}


def refused(error):
    # Both an answer to CONNECT and the body of an HTTP error are objects; only the latter has a code at the top.
    if isinstance(error, dict) and "code" not in error:
        report("ended", code=error.get("data", {}).get("code"), reason=error["message"])
    else:
        report("attempt_failed", message=str(error))


@client.event
def disconnect(reason):
    stays = reason in (client.reason.SERVER_DISCONNECT, client.reason.CLIENT_DISCONNECT)
    report("ended" if stays else "lost", reason=reason)


@client.event
def connect():
    # Until connect() has returned, after this handler, the client ignores a disconnect.
    def returned():
        while not client.connected and client.eio.state == "connected":
            time.sleep(0.005)
        report("connected")

    client.start_background_task(returned)


client.on("connect_error", refused)
client.on("*", lambda name, *args: report("event", name=name, args=args))

try:
    client.connect(url, auth=auth, transports=transports or None, wait_timeout=10)
    client.wait()
except socketio.exceptions.ConnectionError:
    pass  # connect_error has reported it.
