"""Sends a mail for each notification that no device has read in time: a consumer group of the stream tidings:unread.

    pip install redis && REDIS_URL=redis://127.0.0.1:6379 SMTP=127.0.0.1:25 python mail.py
"""

import json
import os
import smtplib
import socket
import sys
import time
from email.message import EmailMessage

import redis

STREAM, GROUP = "tidings:unread", "mail"
CONSUMER = socket.gethostname()  # each process its own
SMTP_HOST, _, SMTP_PORT = os.environ.get("SMTP", "127.0.0.1:25").partition(":")

BLOCK_MS = 5_000

# A reply to XREADGROUP may take as long as it blocks: the timeout of the socket must be longer.
backplane = redis.Redis.from_url(
    os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"), decode_responses=True, socket_timeout=BLOCK_MS / 1_000 + 5
)


def mail(fields):
    message = EmailMessage()
    message["From"] = "notifications@example.com"
    message["To"] = f"user-{fields['user']}@example.com"
    message["Subject"] = f"You have an unread notification: {fields['event']}"
    # The same if the entry is handled again, after a crash between the mail and its acknowledgement.
    message["Message-ID"] = f"<{fields['id']}@example.com>"
    data = json.loads(fields["data"])
    text = data.get("text") if isinstance(data, dict) else None
    message.set_content(text if isinstance(text, str) else fields["data"])
    return message


def send(message):
    with smtplib.SMTP(SMTP_HOST, int(SMTP_PORT or 25), timeout=10) as smtp:
        smtp.send_message(message)


def is_final(error):
    """Whether it is this mail that cannot be sent, now or later: its content, or its recipient."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return all(code >= 500 for code, _ in error.recipients.values())
    if isinstance(error, smtplib.SMTPDataError):
        return error.smtp_code >= 500
    # All other failures of the network and of the mail server are of class OSError, and may pass.
    return isinstance(error, smtplib.SMTPNotSupportedError) or not isinstance(error, OSError)


def handle(entry, fields):
    try:
        send(mail(fields))
    except Exception as error:
        print(f"{entry}: {error!r}", file=sys.stderr)
        if not is_final(error):
            return  # It stays pending, and is taken over in a minute.
    backplane.xack(STREAM, GROUP, entry)


def run():
    try:
        backplane.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    except redis.ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise
    place = "0-0"
    while True:
        try:
            # What another consumer, or this one, took a minute ago and did not acknowledge.
            place, claimed = backplane.xautoclaim(STREAM, GROUP, CONSUMER, 60_000, start_id=place, count=10)[:2]
            for entry, fields in claimed:
                if fields:
                    handle(entry, fields)
            # It waits only once there is no more to take over.
            block = BLOCK_MS if place == "0-0" else None
            for _, entries in backplane.xreadgroup(GROUP, CONSUMER, {STREAM: ">"}, count=10, block=block):
                for entry, fields in entries:
                    handle(entry, fields)
        except (redis.RedisError, OSError) as error:
            print(error, file=sys.stderr)
            time.sleep(1)


if __name__ == "__main__":
    run()
