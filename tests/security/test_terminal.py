"""What a terminal receives when somebody else has written what is shown: text, and nothing that it would obey."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from streamll.codec import encode
from streamll.models import CLOSING, GAP, StreamllEvent
from streamll.wire.file import dead_letter_line, event_line
from tests.fixtures.rabbitmq import RabbitMQEndpoint
from tests.fixtures.redis import RedisEndpoint
from tests.fixtures.waiting import PATIENCE

STREAMLL = [sys.executable, "-c", "import sys; from streamll.cli import main; sys.exit(main())"]

OURS = re.compile(rb"\x1b\[[0-9;]*m")
"""Colours, which are ours; an event's own escape never comes through."""

SEQUENCES = (
    "\x1b]0;title\x07",
    "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]52;c;ZXZpbA==\x07",
    "\x1bP$qm\x1b\\",
    "\x1b[2J\x1b[H\x1b[31m",
    "\x9b31m\x9d0;t\x9c\x90q\x9c",
    "\r\nundeclared loss: none\r\n2026-01-01 INFO forged line",
    "\x1b[6n\x1b[c\x05",
    "\u202eevil\u2066\u061c\u200b\ufeff\u2028line\u2029\u00ad\u180e\U000e0041",
    "".join(map(chr, (*range(32), *range(0x7F, 0xA0)))),
)
EVIL = "x" + "".join(SEQUENCES)


def bytes_shown(words: list[str], **env: str) -> bytes:
    """Run a program with a pseudo-terminal as its output, and return every byte that the terminal receives."""
    screen, end = pty.openpty()
    settings = termios.tcgetattr(end)
    settings[1] &= ~termios.OPOST  # what is written, as it is
    termios.tcsetattr(end, termios.TCSANOW, settings)
    received: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(screen, 65536):
                received.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    path = str(Path(__file__).parents[2])
    environment = {**kept, "TERM": "xterm-256color", "PYTHONUTF8": "1", "PYTHONPATH": path, **env}
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=end, stderr=end, env=environment)
    os.close(end)
    try:
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
        reader.join(PATIENCE)
        os.close(screen)
    return b"".join(received)


def harmless(shown: bytes) -> list[str]:
    """The lines that a terminal was sent, after it has been seen that they are text in our own colours."""
    assert b"Traceback" not in shown
    assert b"a mistake in streamll" not in shown
    text = OURS.sub(b"", shown).decode()
    assert [char for char in text if char != "\n" and not char.isprintable()] == []
    lines = text.splitlines()
    assert len(lines) == text.count("\n")
    assert not any(line.startswith(("undeclared loss: none", "2026-01-01 INFO forged")) for line in lines)
    return lines


def evil_events() -> Iterator[StreamllEvent]:
    """One for each field that has words in it, and notes."""
    for name in (
        "event_type",
        "event_id",
        "execution_id",
        "span_id",
        "module_name",
        "method_name",
        "operation",
        "level",
    ):
        event = StreamllEvent(event_type="t")
        setattr(event, name, EVIL)
        yield event
    yield StreamllEvent(
        event_type="t", data={EVIL: EVIL, "error": {"type": EVIL, "message": EVIL}, "deep": [{EVIL: [EVIL]}]}
    )
    yield StreamllEvent(event_type="t", tags=[EVIL, {EVIL: EVIL}], resource={EVIL: EVIL})
    yield StreamllEvent(event_type="t", tags={EVIL: EVIL}, timestamp=2**63 - 1, extra={EVIL: EVIL})
    yield StreamllEvent(event_type=GAP, data={"count": 1, "ranges": [[3, 3]], "reasons": {"\x1b]0;t\x07": 1}})
    yield StreamllEvent(event_type=CLOSING, data={"last": EVIL})
    yield StreamllEvent(event_type=GAP, data={"count": EVIL, "ranges": EVIL})


def payloads() -> Iterator[bytes]:
    for event in evil_events():
        yield encode(event)
    yield EVIL.encode()
    yield b"\xc1" + EVIL.encode()
    yield b'{"event_type":"\\u001b[31m","level":' + json.dumps(EVIL).encode() + b"}"
    yield b'{"event_type":' + json.dumps({EVIL: EVIL}).encode() + b"}"
    yield b'{"event_type":"t","timestamp":' + json.dumps(EVIL).encode() + b"}"


COMMANDS = (
    ["tail", "--no-follow"],
    ["tail", "--no-follow", "--json"],
    ["audit"],
    ["audit", "--json"],
    ["replay", "--dry-run"],
    ["check"],
)


@pytest.mark.redis
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_redis(words: list[str], redis_server: RedisEndpoint) -> None:
    """Entries, their names and numbers, dead letters with their reasons, and the name of the stream."""
    name = f"streamll-test:{uuid.uuid4().hex}"
    with redis_server.client() as client:
        for stream in (name, f"{name}:dead-letter"):
            for number, payload in enumerate(payloads(), 1):
                for producer, seq in (("p", str(number)), (EVIL, str(number)), (f"p.{EVIL}", "1"), ("p", EVIL)):
                    fields: dict[Any, Any] = {"event": payload, "producer": producer, "seq": seq, "reason": EVIL}
                    client.xadd(stream, fields)
            client.xadd(stream, {EVIL: EVIL})
            client.xadd(stream, {"events": EVIL})
        try:
            lines = harmless(bytes_shown([*STREAMLL, *words, f"{redis_server.url}?stream={name}"]))
        finally:
            client.delete(name, f"{name}:dead-letter")
    assert lines
    if "--json" in words:
        assert all(isinstance(json.loads(line), dict) for line in lines if line.startswith("{"))


@pytest.mark.redis
@pytest.mark.parametrize("words", [*COMMANDS, ["replay"]], ids=" ".join)
def test_the_name_of_a_stream_or_file(words: list[str], redis_server: RedisEndpoint, tmp_path: Path) -> None:
    from urllib.parse import quote

    harmless(bytes_shown([*STREAMLL, *words, f"{redis_server.url}?stream={quote(EVIL)}"]))
    evil = EVIL.replace("\0", "").replace("/", "").encode()[:200].decode("utf-8", "ignore")  # as long as a name may be
    harmless(bytes_shown([*STREAMLL, *words, evil]))
    harmless(bytes_shown([*STREAMLL, *words, f"redis://{evil}/0"]))
    harmless(bytes_shown([*STREAMLL, *words, f"redis://h?{evil}={evil}"]))
    path = tmp_path / evil
    path.write_bytes(b"")
    harmless(bytes_shown([*STREAMLL, *words, str(path)]))


@pytest.mark.parametrize("words", COMMANDS[:-1], ids=" ".join)
def test_a_file(words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    letters = tmp_path / "events.jsonl.dead-letter.jsonl"
    lines = [
        event_line(encode(event, "application/json"), EVIL, number) for number, event in enumerate(evil_events(), 1)
    ]
    path.write_bytes(b"".join(lines) + EVIL.replace("\n", "").encode() + b"\n")
    letters.write_bytes(
        b"".join(dead_letter_line(payload, EVIL, number, EVIL) for number, payload in enumerate(payloads(), 1))
        + EVIL.encode()
    )
    assert harmless(bytes_shown([*STREAMLL, *words, str(path)]))


@pytest.mark.rabbitmq
def test_rabbitmq(rabbitmq_server: RabbitMQEndpoint) -> None:
    """Headers and message ids are anybody's too."""
    queue = f"streamll-test-{uuid.uuid4().hex}"
    connection = rabbitmq_server.connection()
    try:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True)
        for number, payload in enumerate(payloads(), 1):
            marked: list[tuple[dict[str, Any], str | None]] = [
                ({"producer": EVIL, "seq": number, "reason": EVIL, EVIL[:40]: EVIL}, EVIL[:60]),
                ({"producer": "p", "seq": EVIL}, f"{EVIL[:60]}:{number}"),
                ({"events": EVIL}, None),
            ]
            for headers, name in marked:
                properties = pika.BasicProperties(
                    headers=headers, message_id=name, type=EVIL[:60], content_type=EVIL[:60]
                )
                channel.basic_publish("", queue, payload, properties)
        url = f"{rabbitmq_server.url}?queue={queue}"
        lines = harmless(bytes_shown([*STREAMLL, "tail", "--take", "--no-follow", url]))
        assert len(lines) > 40
    finally:
        connection.channel().queue_delete(queue)
        connection.close()


@pytest.mark.parametrize("stream", ["stderr", "stdout"])
def test_the_terminal_sink(stream: str, tmp_path: Path) -> None:
    events = tmp_path / "events"
    events.write_bytes(b"".join(len(p).to_bytes(4, "big") + p for p in map(encode, evil_events())))
    script = """
import sys, streamll
from streamll.codec import decode
data = open(sys.argv[2], "rb").read()
streamll.configure(sinks=[f"terminal://{sys.argv[1]}?color=always"], max_event_bytes=4096)
while data:
    size = int.from_bytes(data[:4], "big")
    event = decode(data[4:4 + size])
    data = data[4 + size:]
    streamll.emit(event.event_type, data=event.data, operation=event.operation, level=event.level, tags=event.tags)
streamll.shutdown()
"""
    assert len(harmless(bytes_shown([sys.executable, "-c", script, stream, str(events)]))) >= 10
