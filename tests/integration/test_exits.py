"""How programs end: in processes of their own, with real brokers, alive and dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import redis

from streamll.codec import decode
from tests.fixtures.redis import RedisEndpoint, RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.redis, pytest.mark.e2e]

HEAD = """
import os, signal, sys, threading, time
import streamll
streamll.configure(sinks=[os.environ["SINK"]])
def emit(n):
    for i in range(n):
        streamll.emit("tick", data={"i": i})
"""
DEAD = "redis://127.0.0.1:1/0?stream=app"


def start(script: str, sink: str, *flags: str) -> subprocess.Popen[str]:
    """A new interpreter that runs a script with that sink; one that forks is not measured by a coverage tool."""
    forks = "fork" in script
    env = {name: value for name, value in os.environ.items() if not (forks and name.startswith("COVERAGE"))}
    return subprocess.Popen(
        [sys.executable, *flags, "-c", HEAD + script],
        env={**env, "SINK": sink},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, sink: str, *flags: str) -> tuple[int, str, str, float]:
    """Exit status, output, error output and seconds of a script."""
    began = time.monotonic()
    process = start(script, sink, *flags)
    out, err = process.communicate(timeout=50)
    return process.returncode, out, err, time.monotonic() - began


def numbers(client: redis.Redis, stream: str) -> list[int]:
    """The `i` of every event of a stream."""
    entries: object = client.xrange(stream)
    assert isinstance(entries, list)
    return [decode(fields[b"event"]).data["i"] for _, fields in entries]


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("emit(1000)", 0),
        ("emit(1000); sys.exit(3)", 3),
        ("emit(1000); raise ValueError('the script is wrong')", 1),
        ("emit(1000); streamll.shutdown()", 0),
        ("import atexit; atexit.register(lambda: emit(1000))", 0),
        ("threading.Thread(target=emit, args=(1000,)).start()", 0),
    ],
    ids=["end", "sys.exit", "uncaught", "shutdown", "atexit", "thread"],
)
def test_a_script_that_emits_and_ends_delivers(
    redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str, ending: str, status: int
) -> None:
    code, out, err, _ = run(ending, f"{redis_server.url}?stream={cleanup_stream}&exit_timeout=30")
    assert code == status
    assert out == ""
    assert err == "" or (status == 1 and err.count("Traceback") == 1 and "streamll" not in err)
    assert numbers(redis_client, cleanup_stream) == list(range(1000))


def test_daemon_threads_may_emit_to_the_very_end(
    redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
) -> None:
    script = """
def forever():
    while True:
        streamll.emit("tick", data={"i": -1})
emit(100)
streamll.flush(20)
for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
time.sleep(0.2)
"""
    code, _, err, _ = run(script, f"{redis_server.url}?stream={cleanup_stream}&exit_timeout=30")
    assert code == 0
    assert "Traceback" not in err
    assert numbers(redis_client, cleanup_stream)[:100] == list(range(100))


def test_exit_keeps_its_time_with_a_dead_broker_and_says_what_is_lost() -> None:
    code, out, err, seconds = run("emit(50)", DEAD)
    assert (code, out) == (0, "")
    assert seconds < 20  # exit_timeout is 2
    assert "50 shutdown" in err
    assert "Traceback" not in err


def test_exit_keeps_its_time_with_a_frozen_broker(own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis()
    server.freeze()
    code, _, err, seconds = run("emit(50)", f"{server.url}?stream=app")
    assert code == 0
    assert seconds < 20
    assert "Traceback" not in err


@pytest.mark.parametrize("sink", ["alive", "dead"])
def test_ctrl_c_ends_promptly(
    redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str, sink: str
) -> None:
    url = f"{redis_server.url}?stream={cleanup_stream}&exit_timeout=30" if sink == "alive" else DEAD
    process = start("emit(100)\nprint('ready', flush=True)\nwhile True: emit(1); time.sleep(0.01)", url)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=50)
    assert time.monotonic() - began < 20
    assert process.returncode in (-signal.SIGINT, 1, 130)
    assert err.count("Traceback") == 1  # the script's own
    if sink == "alive":
        assert numbers(redis_client, cleanup_stream)[:100] == list(range(100))


def test_a_forked_child_delivers_its_own_events_and_the_parent_its_own(
    redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
) -> None:
    script = """
emit(100)
pid = os.fork()
if pid == 0:
    for i in range(100, 200):
        streamll.emit("tick", data={"i": i})
    ok = streamll.flush(20) and streamll.stats().balanced
    os._exit(0 if ok else 1)
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    # Python 3.12 warns of forking a process that has threads: that is what this test is about.
    code, _, err, _ = run(
        script, f"{redis_server.url}?stream={cleanup_stream}&exit_timeout=30", "-W", "ignore::DeprecationWarning"
    )
    assert (code, err) == (0, "")
    assert sorted(numbers(redis_client, cleanup_stream)) == list(range(200))


@pytest.mark.parametrize("pool", [False, True], ids=["Process", "ProcessPoolExecutor"])
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_children_of_multiprocessing_deliver_at_their_end(
    redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str, pool: bool
) -> None:
    script = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
def work(i):
    streamll.emit("tick", data={"i": i})
fork = multiprocessing.get_context("fork")
emit(10)
if POOL:
    with ProcessPoolExecutor(2, mp_context=fork) as pool:
        list(pool.map(work, range(10, 20)))
else:
    for i in range(10, 20):
        process = fork.Process(target=work, args=(i,))
        process.start()
        process.join()
"""
    url = f"{redis_server.url}?stream={cleanup_stream}&exit_timeout=30"
    code, _, err, _ = run(script.replace("POOL", str(pool)), url, "-W", "ignore::DeprecationWarning")
    assert (code, err) == (0, "")
    assert sorted(numbers(redis_client, cleanup_stream)) == list(range(20))
