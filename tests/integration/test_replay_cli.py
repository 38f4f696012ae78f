"""`streamll replay` as a user runs it: what it prints, how it ends, and what it leaves behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from streamll import codec
from streamll.models import StreamllEvent
from streamll.testing.proxy import FaultProxy
from streamll.wire.file import dead_letter_line
from tests.fixtures.redis import RedisEndpoint, RedisServer
from tests.fixtures.waiting import wait_until
from tests.integration.test_cli import STREAMLL, environment, streamll

pytestmark = [pytest.mark.integration, pytest.mark.e2e]


def payload(n: int) -> bytes:
    return codec.encode(StreamllEvent(event_type="token", data={"n": n}), codec.JSON)


def fill_file(path: Path, count: int, reason: str = "too large") -> Path:
    letters = path.with_name(path.name + ".dead-letter.jsonl")
    with letters.open("ab") as file:
        for n in range(1, count + 1):
            file.write(dead_letter_line(payload(n), "p", n, reason))
    return letters


def fill_redis(client: redis.Redis, stream: str, count: int, reason: str = "too large") -> None:
    with client.pipeline() as pipe:
        for n in range(1, count + 1):
            letter: Any = {"event": payload(n), "producer": "p", "seq": n, "reason": reason}
            pipe.xadd(f"{stream}:dead-letter", letter)
        pipe.execute()


class TestFile:
    def test_everything_moves(self, tmp_path: Path) -> None:
        letters = fill_file(tmp_path / "e.jsonl", 5)
        done = streamll("replay", str(tmp_path / "e.jsonl"))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            f"file {letters} -> file {tmp_path / 'e.jsonl'}",
            "redriven 5, still rejected 0, left 0",
        ]

    def test_a_dry_run_tells_by_reason_and_moves_nothing(self, tmp_path: Path) -> None:
        letters = fill_file(tmp_path / "e.jsonl", 5)
        fill_file(tmp_path / "e.jsonl", 2, "\x1b]0;hi\x07 amqp://user:secret@host")
        before = letters.read_bytes()
        done = streamll("replay", "--dry-run", f"file://{letters}")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[1:] == [
            "would redrive 7, cannot 0, would leave 0",
            "        5  too large",
            "        2  \\x1b]0;hi\\x07 amqp://***@host",
        ]
        assert letters.read_bytes() == before
        assert not (tmp_path / "e.jsonl").exists()

    def test_something_stays(self, tmp_path: Path) -> None:
        letters = fill_file(tmp_path / "e.jsonl", 3)
        with letters.open("a") as file:
            file.writelines(f"junk {n}\n" for n in range(2))
        done = streamll("replay", str(tmp_path / "e.jsonl"))
        assert (done.returncode, done.stderr) == (1, "")
        assert done.stdout.splitlines()[1:] == [
            "redriven 3, still rejected 2, left 0",
            "        2  no dead letter of ours: no line of JSON with producer, seq and reason",
        ]

    def test_what_was_not_asked_for_is_no_failure(self, tmp_path: Path) -> None:
        fill_file(tmp_path / "e.jsonl", 3, "a")
        fill_file(tmp_path / "e.jsonl", 3, "b")
        done = streamll("replay", "--reason", "A", "--limit", "2", str(tmp_path / "e.jsonl"))
        assert (done.returncode, done.stdout.splitlines()[1]) == (0, "redriven 2, still rejected 0, left 4")

    def test_many_reasons_are_not_all_shown(self, tmp_path: Path) -> None:
        for n in range(25):
            fill_file(tmp_path / "e.jsonl", 1, f"reason {n}")
        done = streamll("replay", "--dry-run", str(tmp_path / "e.jsonl"))
        assert len(done.stdout.splitlines()) == 2 + 20 + 1
        assert done.stdout.splitlines()[-1].strip() == "and 5 other reasons"

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["/no/such/place"], "neither a file nor a spool of that name"),
            (["http://user:secret@host/"], "of another kind"),
            (["redis://user:secret@host/?nonsense=1"], "unknown option 'nonsense'"),
            (["redis://user:secret@host/", "--to", "terminal://"], "of another kind"),
            (["--limit", "0", "x"], "must be a whole number above 0"),
            ([], "required"),
        ],
    )
    def test_mistakes(self, words: list[str], said: str) -> None:
        done = streamll("replay", *words)
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stdout == ""
        assert "secret" not in done.stderr


@pytest.mark.redis
class TestRedis:
    def test_everything_moves(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        fill_redis(redis_client, cleanup_stream, 1_200)
        done = streamll("replay", f"{redis_server.url}?stream={cleanup_stream}")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[1] == "redriven 1,200, still rejected 0, left 0"
        assert redis_client.xlen(cleanup_stream) == 1_200

    @pytest.mark.parametrize("url", ["redis://user:secret@127.0.0.1:1/0?stream=app", "amqp://user:secret@127.0.0.1:1/"])
    def test_nobody_there(self, url: str) -> None:
        done = streamll("replay", url)
        assert done.returncode == 2
        assert done.stdout.splitlines()[1] == "redriven 0, still rejected 0, left an unknown number"
        assert "refused" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert "secret" not in done.stdout + done.stderr

    def test_a_wrong_password(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis(requirepass="right-secret")
        done = streamll("replay", "--dry-run", server.url.replace("right-secret", "wrong-secret"))
        assert done.returncode == 2
        assert "password is wrong" in done.stderr
        assert "secret" not in done.stdout + done.stderr

    def test_interrupted_it_ends_between_two_steps(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        """Slowed down by a line that takes its time, so that Ctrl-C comes in the middle."""
        fill_redis(redis_client, cleanup_stream, 5_000)
        settings = redis_client.connection_pool.connection_kwargs
        with FaultProxy(settings["host"], settings["port"]) as proxy:
            proxy.delay(0.05)
            url = f"redis://{proxy.host}:{proxy.port}/{settings.get('db', 0)}?stream={cleanup_stream}"
            command = subprocess.Popen(
                [*STREAMLL, "replay", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
            )
            assert wait_until(lambda: redis_client.xlen(cleanup_stream) > 0, 30.0)
            command.send_signal(signal.SIGINT)
            out, err = command.communicate(timeout=30.0)
        assert command.returncode == 130
        assert err == "streamll: ends after the events under way; Ctrl-C again ends it at once\n"
        moved, left = redis_client.xlen(cleanup_stream), redis_client.xlen(f"{cleanup_stream}:dead-letter")
        assert 0 < moved < 5_000
        assert moved + left == 5_000
        assert out.splitlines()[1] == f"redriven {moved:,}, still rejected 0, left {left:,}"

    def test_interrupted_twice_it_ends_at_once(self) -> None:
        with SilentServer() as server:
            command = subprocess.Popen(
                [*STREAMLL, "replay", f"redis://127.0.0.1:{server.port}/0?send_timeout=600&connect_timeout=600"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(),
            )
            assert command.stderr is not None
            assert wait_until(lambda: server.taken, 30.0)
            command.send_signal(signal.SIGINT)
            assert "again" in command.stderr.readline()
            command.send_signal(signal.SIGINT)
            out, err = command.communicate(timeout=30.0)
        assert command.returncode == 130
        assert out.splitlines()[1:] == ["redriven 0, still rejected 0, left an unknown number"]
        assert err == ""


class SilentServer:
    """A server that takes connections and never says anything.

    Attributes:
        port: Where it is.
        taken: The connections that it has.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> SilentServer:
        self._thread.start()
        return self

    def _accept(self) -> None:
        while True:
            try:
                self.taken.append(self._listener.accept()[0])
            except OSError:
                return

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for taken in self.taken:
            taken.close()
