"""`streamll replay SPOOL_DIR`: what dead processes left is delivered, under their names and numbers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from streamll import codec
from streamll.consumers import FileConsumer
from streamll.replay.spool import Sinks, deliver
from streamll.runtime.spool import AdoptedJournal, adopt, orphans
from streamll.sinks.redis import RedisSink
from streamll.wire.redis import decode_entry
from tests.fixtures.rabbitmq import RabbitMQEndpoint
from tests.fixtures.redis import RedisServer
from tests.integration.test_cli import environment, streamll
from tests.sinks.rabbitmq_tools import Broker

pytestmark = [pytest.mark.integration, pytest.mark.redis]

DIE = """
import json, os, signal, sys
from streamll.models import StreamllEvent
from streamll.registry import make_sink

url, folder, count, then = sys.argv[1:5]
sink = make_sink(url, durability="process", spool_dir=folder, **json.loads(sys.argv[5]))
for n in range(1, int(count) + 1):
    assert sink.handle_event(StreamllEvent(event_type="token", data={"n": n}))
if then == "flushed":
    assert sink.flush(10)
    for n in range(int(count) + 1, int(count) * 2 + 1):
        assert sink.handle_event(StreamllEvent(event_type="token", data={"n": n}))
print(sink.producer, flush=True)
if then == "alive":
    sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""
"""A program that emits and is killed: before anything is sent, after half of it is there, or when it is told to."""

LAZY: dict[str, Any] = {"flush_interval": 3600, "batch_size": 5000, "buffer_size": 100_000}


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as made:
        made.flushall()
        yield made


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def start(url: str, spool: Path, count: int, then: str = "", **options: Any) -> subprocess.Popen[str]:
    words = [url, str(spool), str(count), then, json.dumps({**LAZY, **options})]
    kept = {name: value for name, value in environment().items() if not name.startswith("COVERAGE")}
    return subprocess.Popen(
        [sys.executable, "-c", DIE, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=kept
    )


def kill(url: str, spool: Path, count: int, then: str = "", **options: Any) -> str:
    """Let a process emit so many events and die; returns its producer's id."""
    process = start(url, spool, count, then, **options)
    out, _ = process.communicate(timeout=30.0)
    assert process.returncode == -9
    return out.strip()


def found(client: Any, stream: str = "app") -> list[tuple[str, int]]:
    entries = [decode_entry(fields) for _, fields in client.xrange(stream)]
    for entry in entries:
        event = codec.decode(entry.payload)
        assert event.event_type != "token" or event.data == {"n": entry.seq}
    return [(entry.producer, entry.seq) for entry in entries if codec.decode(entry.payload).event_type == "token"]


def numbered(producer: str, last: int) -> list[tuple[str, int]]:
    return [(producer, seq) for seq in range(1, last + 1)]


def test_several_processes_are_delivered_under_their_own_names(
    server: RedisServer, client: redis.Redis, spool: Path
) -> None:
    url = f"{server.url}?stream=app"
    producers = [kill(url, spool, 700), _kill_unadopted(url, spool, 800)]
    shown = server.url + " stream app"
    looked = streamll("replay", "--dry-run", str(spool))
    assert (looked.returncode, looked.stderr) == (0, "")
    assert looked.stdout.splitlines() == [
        f"{producers[0]} -> {shown}: 700 events",
        f"{producers[1]} -> {shown}: 800 events",
        "would deliver 1,500 of 2 dead processes; 0 skipped",
    ]
    assert client.xlen("app") == 0
    done = streamll("replay", str(spool))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{producers[0]} -> {shown}: 700 events",
        "  delivered 700, left 0",
        f"{producers[1]} -> {shown}: 800 events",
        "  delivered 800, left 0",
        "delivered 1,500, left 0, of 2 dead processes; 0 skipped",
    ]
    assert found(client) == numbered(producers[0], 700) + numbered(producers[1], 800)
    again = streamll("replay", str(spool))
    assert again.stdout == "delivered 0, left 0, of 0 dead processes; 0 skipped\n"


def _kill_unadopted(url: str, spool: Path, count: int) -> str:
    """Let a process die that has not adopted what others left: what it leaves is moved to them when it is dead."""
    own = spool.with_name("own")
    producer = kill(url, own, count)
    for folder in own.glob("*/*"):
        folder.rename(spool / folder.relative_to(own))
    return producer


def test_what_was_sent_before_the_death_is_there_once(server: RedisServer, client: redis.Redis, spool: Path) -> None:
    """Also what the dead process could not note as delivered: the journal is put back to before it was sent."""
    url = f"{server.url}?stream=app"
    producer = kill("redis://127.0.0.1:1/0?stream=app", spool, 500)
    copy = spool.with_name("copy")
    shutil.copytree(spool, copy)
    for folder in (spool, copy):
        done = streamll("replay", str(folder), "--to", url)
        assert (done.returncode, done.stderr) == (0, "")
        assert "delivered 500, left 0" in done.stdout
    assert found(client) == numbered(producer, 500)


def test_a_process_that_had_delivered_half(server: RedisServer, client: redis.Redis, spool: Path) -> None:
    producer = kill(f"{server.url}?stream=app", spool, 500, "flushed")
    assert found(client) == numbered(producer, 500)
    done = streamll("replay", str(spool))
    assert done.returncode == 0, done.stdout
    assert found(client) == numbered(producer, 1000)


def test_living_processes_are_left_alone(server: RedisServer, client: redis.Redis, spool: Path) -> None:
    process = start(f"{server.url}?stream=app", spool, 50, "alive")
    try:
        assert process.stdout is not None
        producer = process.stdout.readline().strip()
        done = streamll("replay", str(spool))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            f"{producer}: skipped, a living process has it, or it cannot be read",
            "delivered 0, left 0, of 0 dead processes; 1 skipped",
        ]
        assert client.xlen("app") == 0
    finally:
        process.communicate("")
    assert streamll("replay", str(spool)).returncode == 0
    assert found(client) == numbered(producer, 50)


def test_the_password_comes_from_the_sinks_of_the_environment(
    own_redis: Callable[..., RedisServer], spool: Path
) -> None:
    server = own_redis(requirepass="hidden-secret")
    url = f"{server.url}?stream=app"
    producer = kill(url, spool, 20)
    assert "hidden-secret" not in "".join(str(file.read_bytes()) for file in spool.rglob("*.segment"))
    without = streamll("replay", str(spool))
    assert without.returncode == 2
    assert "wants a password" in without.stderr
    assert "left 20" in without.stdout
    done = streamll("replay", str(spool), STREAMLL_SINKS=f"terminal://,{url}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "hidden-secret" not in done.stdout + without.stdout + without.stderr
    with server.client() as client:
        assert found(client) == numbered(producer, 20)


def test_to_somewhere_else(server: RedisServer, client: redis.Redis, spool: Path, tmp_path: Path) -> None:
    producer = kill("redis://127.0.0.1:1/0?stream=app", spool, 20)
    nobody = streamll("replay", str(spool))
    assert nobody.returncode == 2
    assert "refused" in nobody.stderr
    assert nobody.stdout.splitlines()[-1] == "delivered 0, left 20, of 1 dead processes; 0 skipped"
    done = streamll("replay", str(spool), "--to", f"file://{tmp_path}/events.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    with FileConsumer(tmp_path / "events.jsonl", follow=False) as consumer:
        assert [(item.producer, item.seq) for item in consumer] == numbered(producer, 20)


def test_a_destination_that_does_not_answer_is_tried_once(spool: Path) -> None:
    kill("redis://127.0.0.1:1/0?stream=app", spool, 20)
    _kill_unadopted("redis://127.0.0.1:1/0?stream=app", spool, 30)
    done = streamll("replay", str(spool))
    assert done.returncode == 2
    assert done.stdout.count("delivered 0, left") == 2  # one orphan, and all of them
    assert done.stdout.splitlines()[-1] == "delivered 0, left 50, of 2 dead processes; 0 skipped"


def test_old_ones_are_delivered_with_a_warning(server: RedisServer, client: redis.Redis, spool: Path) -> None:
    producer = kill(f"{server.url}?stream=app", spool, 20)
    long_ago = 1_600_000_000
    assert time.time() - long_ago > RedisSink.orphan_age
    for segment in spool.rglob("*.segment"):
        os.utime(segment, (long_ago, long_ago))
    done = streamll("replay", str(spool))
    assert done.returncode == 0
    assert "days old" in done.stdout
    assert "may be there twice" in done.stdout
    assert found(client) == numbered(producer, 20)


def test_damage_is_said(server: RedisServer, client: redis.Redis, spool: Path) -> None:
    producer = kill(f"{server.url}?stream=app", spool, 200)
    segment = next(iter(sorted(spool.rglob("*.segment"))))
    data = bytearray(segment.read_bytes())
    at = data.index(b"token", len(data) // 100)
    data[at : at + 4] = b"----"
    segment.write_bytes(data)
    done = streamll("replay", str(spool))
    assert done.returncode == 0, done.stdout
    first, second, _ = done.stdout.splitlines()
    assert first == f"{producer} -> {server.url} stream app: 199 events, 1 damaged places, 1 lost"
    assert second.startswith("  delivered 199, left 0")
    assert len(found(client)) == 199


def test_no_limit_and_no_reason_for_a_spool(spool: Path) -> None:
    spool.mkdir()
    for words in (["--limit", "1"], ["--reason", "x"]):
        done = streamll("replay", str(spool), *words)
        assert done.returncode == 2
        assert "a spool has none" in done.stderr
    assert streamll("replay", str(spool)).returncode == 0


def test_what_would_end_with_the_command_is_refused(spool: Path) -> None:
    kill("redis://127.0.0.1:1/0?stream=app", spool, 5)
    done = streamll("replay", str(spool), "--to", "memory://")
    assert done.returncode == 2
    assert "memory:// would end with this command" in done.stderr


def test_stopped_in_the_middle_the_rest_stays(server: RedisServer, client: redis.Redis, spool: Path) -> None:
    producer = kill(f"{server.url}?stream=app", spool, 3_000)
    sinks = Sinks(f"{server.url}?stream=app&batch_size=100&batch_growth=1")
    ((_, journal),) = [*_held(spool)]
    done = deliver(journal, sinks.of(journal.identity), stop=lambda: client.xlen("app") > 0)
    assert (done.trouble, done.numbers.balanced) == ("", True)
    assert done.numbers.delivered + done.left == 3_000
    assert found(client) == numbered(producer, done.numbers.delivered)
    assert streamll("replay", str(spool)).returncode == 0
    assert found(client) == numbered(producer, 3_000)


def _held(spool: Path) -> Iterator[tuple[Path, AdoptedJournal]]:
    """The orphans of a spool, not closed."""
    for folder in orphans(spool):
        journal = adopt(folder)
        assert journal is not None
        yield folder, journal


@pytest.mark.rabbitmq
def test_rabbitmq(rabbitmq_server: RabbitMQEndpoint, spool: Path) -> None:
    broker = Broker(rabbitmq_server.url)
    try:
        url = f"{broker.url}?exchange={broker.name}&queue={broker.name}"
        producer = kill(url, spool, 40)
        done = streamll("replay", str(spool), STREAMLL_SINKS=url)
        assert (done.returncode, done.stderr) == (0, "")
        assert broker.url.split("@")[0].removeprefix("amqp://") not in done.stdout
        entries = [entry for entry in broker.entries() if codec.decode(entry.payload).event_type == "token"]
        assert [(entry.producer, entry.seq) for entry in entries] == numbered(producer, 40)
    finally:
        broker.remove()
