"""Publishes and lists with the client that openapi-python-client generated, and prints the text of the notification.

usage: CALLS="NAME…" PYTHONPATH=FOLDER openapi_client.py URL
"""
import importlib
import os
import re
import sys

from tidings import Client
from tidings.models import Notification


def call(name):
    module = re.sub("([A-Z])", r"_\1", name).lower()
    return importlib.import_module(f"tidings.api.default.{module}")


calls = {name: call(name) for name in os.environ["CALLS"].split()}
with Client(base_url=sys.argv[1], raise_on_unexpected_status=True) as client:
    body = Notification(data={"text": "hello from a generated client"}, durable=True)
    published = calls["publish"].sync("42", client=client, body=body)
    listed = calls["listNotifications"].sync("42", client=client)
    assert [one.id for one in listed.notifications] == [published.id]
    print(listed.notifications[0].data["text"])
