"""A stream read with httpx-sse, which leaves the reconnect to its user. It prints a line of JSON for all that it learns.

usage: sse_client.py URL TOKEN_URL
"""
import json
import sys
import time

import httpx
from httpx_sse import connect_sse

url, token_url = sys.argv[1:]
client = httpx.Client(timeout=httpx.Timeout(5, read=None))
last_event_id, retry_ms = "", 1000


def report(kind, **more):
    print(json.dumps({"is": kind, **more}), flush=True)


while True:
    welcomed, code = False, None
    try:
        headers = {"Authorization": "Bearer " + client.get(token_url).text}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        with connect_sse(client, "GET", url + "/events", headers=headers) as source:
            if source.response.status_code != 200:
                source.response.read()
                report("ended", code=source.response.status_code, reason=source.response.text)
                break
            for sse in source.iter_sse():
                last_event_id, retry_ms = sse.id or last_event_id, sse.retry or retry_ms
                frame = json.loads(sse.data or "{}")
                if frame.get("type") == "welcome":
                    welcomed = True
                    report("connected", recovered=frame["recovered"])
                elif frame.get("type") == "event":
                    cursor = [frame["id"]] if "id" in frame else []
                    report("event", name=frame["event"], args=[frame["data"], *cursor], id=sse.id)
                elif frame.get("type") == "error":
                    code = frame["code"]
        reason = "end of body"
    except httpx.TransportError as error:
        reason = repr(error)
    report("lost" if welcomed else "attempt_failed", code=code, reason=reason)
    time.sleep(retry_ms / 1000)
