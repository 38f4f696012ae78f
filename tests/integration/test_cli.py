"""`streamll check` and `streamll tail` as a user runs them, on real servers and files."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pika
import pytest
import redis

from streamll import codec
from streamll.consumers import FileConsumer
from streamll.models import StreamllEvent
from tests.fixtures.rabbitmq import RabbitMQEndpoint
from tests.fixtures.redis import RedisEndpoint, RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

STREAMLL = [sys.executable, "-c", "import sys; from streamll.cli import main; sys.exit(main())"]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM", "STREAMLL_DEBUG")}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUTF8": "1", **more}


def streamll(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    done = subprocess.run(
        [*STREAMLL, *words], capture_output=True, text=True, encoding="utf-8", timeout=50.0, env=environment(**more)
    )
    assert "Traceback" not in done.stderr
    return done


class Running:
    """A command that goes on: its lines as they come, and its end."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [*STREAMLL, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=environment()
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._errors: list[str] = []
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self._lines.put)),
            threading.Thread(target=self._read, args=(self.process.stderr, self._errors.append)),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(pipe: Any, keep: Callable[[str], object]) -> None:
        for line in pipe:
            keep(line.rstrip("\n"))
        pipe.close()

    def line(self, timeout: float = 20.0) -> str:
        return self._lines.get(timeout=timeout)

    def end(self, sig: int = signal.SIGINT) -> tuple[int, list[str], list[str]]:
        """Send a signal; returns the exit code, the lines that were not read yet and those of standard error."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        code = self.process.wait(20.0)
        for reader in self._readers:
            reader.join(20.0)
        return code, list(self._lines.queue), self._errors


@pytest.fixture
def running() -> Iterator[Callable[..., Running]]:
    """Start commands that go on; all end with the test."""
    with contextlib.ExitStack() as commands:

        def start(*words: str) -> Running:
            command = Running(*words)
            commands.callback(command.end, signal.SIGKILL)
            return command

        yield start


def add(client: redis.Redis, stream: str, *events: StreamllEvent, first: int = 1) -> None:
    for seq, event in enumerate(events, first):
        client.xadd(stream, {"event": codec.encode(event), "producer": "p", "seq": seq})


def until_shown(command: Running, write: Callable[[], object], times: int = 100) -> str:
    """Write again and again until the command, which may still be starting, shows something; returns that line."""
    for _ in range(times):
        write()
        with contextlib.suppress(queue.Empty):
            return command.line(timeout=0.2)
    raise AssertionError("nothing was shown")


def test_no_client_library_is_imported_before_it_is_needed() -> None:
    code = "import sys, streamll.cli; print([m for m in ('redis', 'pika', 'tenacity') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.stdout.strip() == "[]"


@pytest.mark.redis
class TestCheckRedis:
    def test_a_server_that_serves(self, redis_server: RedisEndpoint, unique_stream_key: str) -> None:
        done = streamll("check", f"{redis_server.url}?stream={unique_stream_key}")
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[0].startswith("redis://")
        assert "  ok " in done.stdout
        assert "  error " not in done.stdout

    def test_as_json(self, redis_server: RedisEndpoint, unique_stream_key: str) -> None:
        done = streamll("check", "--json", f"{redis_server.url}?stream={unique_stream_key}")
        found = json.loads(done.stdout)
        assert found["url"].startswith("redis://")
        assert {finding["level"] for finding in found["findings"]} <= {"ok", "warning"}
        assert all(finding["text"] for finding in found["findings"])

    def test_nobody_there(self) -> None:
        done = streamll("check", "redis://user:secret@127.0.0.1:1/0")
        assert done.returncode == 1
        assert "  error " in done.stdout
        assert "-> " in done.stdout  # what to do about it
        assert "secret" not in done.stdout + done.stderr

    def test_a_wrong_password(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis(requirepass="right-secret")
        done = streamll("check", server.url.replace("right-secret", "wrong-secret"))
        assert done.returncode == 1
        assert "secret" not in done.stdout + done.stderr

    def test_the_others_are_checked_too(self, redis_server: RedisEndpoint) -> None:
        done = streamll("check", "gopher://u:secret@h", redis_server.url, "file:///no/such/folder/at/all?max_bytes=1")
        assert done.returncode == 2
        assert "unknown; the schemes are" in done.stdout
        assert "  ok " in done.stdout
        assert "secret" not in done.stdout + done.stderr


@pytest.mark.rabbitmq
class TestCheckRabbitMQ:
    def test_a_server_that_serves(self, rabbitmq_server: RabbitMQEndpoint) -> None:
        done = streamll("check", f"{rabbitmq_server.url}?exchange=streamll-test-{uuid4().hex}")
        assert done.returncode in (0, 1)  # nothing is bound to it: how bad that is, is for the sink to say
        assert "streamll_test" not in done.stdout + done.stderr
        assert "RabbitMQ" in done.stdout

    def test_a_wrong_password(self, rabbitmq_server: RabbitMQEndpoint) -> None:
        done = streamll("check", rabbitmq_server.url.replace("streamll_test", "wrong-secret"))
        assert done.returncode == 1
        assert "wrong-secret" not in done.stdout + done.stderr


@pytest.mark.redis
class TestTailRedis:
    def test_what_is_there(self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str) -> None:
        add(
            redis_client,
            cleanup_stream,
            StreamllEvent(event_type="span", operation="retrieve", execution_id="abcd" * 8),
            StreamllEvent(event_type="token", operation="generate", data={"text": "Hi"}),
        )
        redis_client.xadd(cleanup_stream, {"temperature": "21"})
        url = f"{redis_server.url}?stream={cleanup_stream}"
        done = streamll("tail", "--no-follow", url)
        assert (done.returncode, done.stderr) == (0, "")
        first, second, third = done.stdout.splitlines()
        assert "span retrieve" in first
        assert "token generate text=Hi" in second
        assert third.startswith("undecodable entry at ")
        assert "temperature=21" in third
        assert "\x1b" not in done.stdout  # colours are for terminals

        def shown(*words: str) -> int:
            return len(streamll("tail", "--no-follow", *words, url).stdout.splitlines())

        assert shown("--type", "tok*") == shown("--operation", "retrieve") == shown("--execution", "abcda") == 1
        assert shown("--type", "span", "--type", "token") == 2
        assert shown("--count", "1") == 1
        assert shown("--from", "end") == 0

    def test_as_json_that_reads_back(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str, tmp_path: Path
    ) -> None:
        event = StreamllEvent(event_type="token", operation="grün", data={"n": 1})
        add(redis_client, cleanup_stream, event, event)
        done = streamll("tail", "--json", "--no-follow", f"{redis_server.url}?stream={cleanup_stream}")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [(line["operation"], line["seq"]) for line in lines] == [("grün", 1), ("grün", 2)]
        after = streamll(
            "tail",
            "--json",
            "--no-follow",
            "--from",
            lines[0]["position"],
            f"{redis_server.url}?stream={cleanup_stream}",
        )
        assert [json.loads(line)["seq"] for line in after.stdout.splitlines()] == [2]
        path = tmp_path / "events.jsonl"
        path.write_text(done.stdout, encoding="utf-8")
        with FileConsumer(path, follow=False) as consumer:
            assert [item.seq for item in consumer] == [1, 2]

    def test_live_until_ctrl_c(
        self,
        redis_server: RedisEndpoint,
        redis_client: redis.Redis,
        cleanup_stream: str,
        running: Callable[..., Running],
    ) -> None:
        add(redis_client, cleanup_stream, StreamllEvent(event_type="before"))
        command = running("tail", f"{redis_server.url}?stream={cleanup_stream}&buffer_size=10")
        line = until_shown(
            command, lambda: redis_client.xadd(cleanup_stream, {"event": codec.encode(StreamllEvent(event_type="now"))})
        )
        assert "now" in line
        code, lines, errors = command.end(signal.SIGINT)
        assert (code, errors) == (130, [])
        assert not any("before" in line for line in lines)

    def test_a_reader_that_goes_away(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, *[StreamllEvent(event_type="t", data={"text": "x" * 500})] * 2000)
        process = subprocess.Popen(
            [*STREAMLL, "tail", "--no-follow", f"{redis_server.url}?stream={cleanup_stream}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30.0) == 0
        assert process.stderr.read() == b""
        process.stderr.close()

    def test_a_lost_connection_is_said(
        self, own_redis: Callable[..., RedisServer], running: Callable[..., Running]
    ) -> None:
        server = own_redis()
        url = f"redis://user:secret@127.0.0.1:{server.port}/0?stream=app"
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "user", "on", ">secret", "~*", "+@all")
        command = running("tail", url)
        with server.client() as client:
            until_shown(command, lambda: client.xadd("app", {"event": codec.encode(StreamllEvent(event_type="t"))}))
        server.kill()
        deadline = time.monotonic() + 20.0
        while not any("connection lost" in line for line in command._errors) and time.monotonic() < deadline:
            time.sleep(0.05)
        code, _, errors = command.end(signal.SIGINT)
        assert code == 130
        assert any("connection lost, trying again" in line for line in errors)
        assert "secret" not in "".join(errors)

    def test_nobody_there(self) -> None:
        done = streamll("tail", "redis://user:secret@127.0.0.1:1/0")
        assert (done.returncode, done.stdout) == (1, "")
        assert "127.0.0.1:1" in done.stderr
        assert "secret" not in done.stderr

    def test_hostile_entries(self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str) -> None:
        evil = "\x1b]0;owned\x07\x1b[2J\n\x9b31m\u202e"
        add(
            redis_client, cleanup_stream, StreamllEvent(event_type=evil, operation=evil, data={evil: evil}, tags=[evil])
        )
        strange: list[Any] = [{"event": b"\x81" + evil.encode()}, {evil: evil}, {"event": b"\xdf\xff\xff\xff\xff"}]
        for fields in strange:
            redis_client.xadd(cleanup_stream, fields)
        for words in ((), ("--json",)):
            done = streamll("tail", "--no-follow", *words, f"{redis_server.url}?stream={cleanup_stream}")
            assert len(done.stdout.splitlines()) == 4
            assert not {"\x1b", "\x07", "\x9b", "\u202e"} & {*done.stdout}

    def test_colours_on_a_terminal(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, StreamllEvent(event_type="span", level="error", operation="\x1b[2J"))
        words = ["tail", "--no-follow", f"{redis_server.url}?stream={cleanup_stream}"]
        assert b"\x1b[31m" in on_a_terminal(words, TERM="xterm")
        assert b"\x1b[2J" not in on_a_terminal(words, TERM="xterm")
        assert b"\x1b" not in on_a_terminal(words, TERM="xterm", NO_COLOR="1")
        assert b"\x1b" not in on_a_terminal(words, TERM="dumb")


def on_a_terminal(words: Sequence[str], **more: str) -> bytes:
    """What a command writes when its output is a terminal."""
    ours, its = pty.openpty()
    process = subprocess.Popen([*STREAMLL, *words], stdout=its, env=environment(**more))
    os.close(its)
    shown = b""
    with contextlib.suppress(OSError):  # which Linux gives where others give an end
        while data := os.read(ours, 65_536):
            shown += data
    os.close(ours)
    assert process.wait(20.0) == 0
    return shown


@pytest.mark.rabbitmq
class TestTailRabbitMQ:
    def test_an_exchange_live(
        self,
        rabbitmq_server: RabbitMQEndpoint,
        rabbitmq_connection: pika.BlockingConnection,
        running: Callable[..., Running],
    ) -> None:
        channel = rabbitmq_connection.channel()
        name = f"streamll-test-{uuid4().hex}"
        channel.exchange_declare(name, "topic", auto_delete=False)
        channel.queue_declare(name)
        channel.queue_bind(name, name, "#")
        try:
            # A sink's URL, whose queue belongs to somebody else.
            command = running("tail", "--json", f"{rabbitmq_server.url}?exchange={name}&queue={name}")
            payload = codec.encode(StreamllEvent(event_type="token", operation="generate"))
            line = until_shown(command, lambda: channel.basic_publish(name, "token", payload))
            assert json.loads(line)["operation"] == "generate"
            code, lines, errors = command.end(signal.SIGINT)
            assert (code, errors) == (130, [])
            waiting = channel.queue_declare(name, passive=True).method.message_count
            assert waiting >= 1 + len(lines)  # nothing was taken from it
        finally:
            channel.queue_delete(name)
            channel.exchange_delete(name)

    def test_a_queue_is_read_only_when_it_may_be_emptied(
        self, rabbitmq_server: RabbitMQEndpoint, rabbitmq_connection: pika.BlockingConnection
    ) -> None:
        channel = rabbitmq_connection.channel()
        name = f"streamll-test-{uuid4().hex}"
        channel.queue_declare(name)
        try:
            for _ in range(3):
                channel.basic_publish("", name, codec.encode(StreamllEvent(event_type="token")))
            url = f"{rabbitmq_server.url}?queue={name}"
            assert streamll("tail", "--no-follow", url).returncode == 2
            done = streamll("tail", "--no-follow", "--take", "--count", "2", url)
            assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
            assert channel.queue_declare(name, passive=True).method.message_count == 1
        finally:
            channel.queue_delete(name)

    def test_a_stream_keeps_its_events(
        self, rabbitmq_server: RabbitMQEndpoint, rabbitmq_connection: pika.BlockingConnection
    ) -> None:
        channel = rabbitmq_connection.channel()
        name = f"streamll-test-{uuid4().hex}"
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": "stream"})
        try:
            channel.confirm_delivery()
            for _ in range(3):
                channel.basic_publish("", name, codec.encode(StreamllEvent(event_type="token")))
            url = f"{rabbitmq_server.url}?queue={name}&queue_type=stream"
            for _ in range(2):
                assert len(streamll("tail", "--no-follow", url).stdout.splitlines()) == 3
        finally:
            channel.queue_delete(name)

    def test_a_wrong_password(self, rabbitmq_server: RabbitMQEndpoint) -> None:
        done = streamll("tail", rabbitmq_server.url.replace("streamll_test", "wrong-secret"))
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert "wrong-secret" not in done.stderr


class TestTailFile:
    def test_live(self, tmp_path: Path, running: Callable[..., Running]) -> None:
        path = tmp_path / "events.jsonl"
        command = running("tail", "--type", "token", str(path))
        line = codec.to_json(StreamllEvent(event_type="token", operation="generate")) + b"\n"

        def write() -> None:
            with path.open("ab") as file:
                file.write(codec.to_json(StreamllEvent(event_type="span")) + b"\n" + line)

        assert "token generate" in until_shown(command, write)
        code, lines, errors = command.end(signal.SIGINT)
        assert code == 130
        assert not any("span" in line for line in lines)
        assert all("does not exist yet" in line for line in errors)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        done = streamll("tail", "--no-follow", f"file://{tmp_path}/events.jsonl")
        assert (done.returncode, done.stdout) == (1, "")
        assert "does not exist" in done.stderr
