"""How programs end: in processes of their own, with real brokers, alive, refusing, frozen and dead."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.contract.destinations import Destination, RabbitMQDestination, RedisDestination
from tests.fixtures.rabbitmq import RabbitMQServer
from tests.fixtures.redis import RedisServer
from tests.integration.programs import HEAD, hear, numbers, run, start, with_options

pytestmark = [pytest.mark.integration, pytest.mark.redis, pytest.mark.rabbitmq, pytest.mark.e2e]

DEAD = {"redis": "redis://127.0.0.1:1/0?stream=app", "rabbitmq": "amqp://127.0.0.1:1/?queue=app"}

SLACK = 20.0
"""Seconds beyond an exit_timeout of two that no machine needs."""


@pytest.fixture(params=["redis", "rabbitmq"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which broker."""
    return str(request.param)


@pytest.fixture
def destination(request: pytest.FixtureRequest, kind: str) -> Iterator[Destination]:
    """A place on a server that others use too."""
    server = request.getfixturevalue(f"{kind}_server")
    found = RedisDestination(server) if kind == "redis" else RabbitMQDestination(server)
    with contextlib.closing(found):
        yield found


def frozen(kind: str, own_redis: Callable[..., RedisServer], own_rabbitmq: Callable[..., RabbitMQServer]) -> str:
    """The URL of a broker that takes connections and says nothing."""
    if kind == "redis":
        redis = own_redis()
        redis.freeze()
        return RedisDestination(redis).url()
    rabbitmq = own_rabbitmq()
    rabbitmq.freeze()
    return RabbitMQDestination(rabbitmq).url()


ENDINGS = {
    "end": ("emit(1000)", 0),
    "sys.exit": ("emit(1000); sys.exit(3)", 3),
    "uncaught": ("emit(1000); raise ValueError('the script is wrong')", 1),
    "shutdown": ("emit(1000); streamll.shutdown()", 0),
    "atexit": ("import atexit; atexit.register(lambda: emit(1000))", 0),
    "thread": ("threading.Thread(target=emit, args=(1000,)).start()", 0),
    "a thread that outlives the main one": (
        "threading.Thread(target=lambda: (time.sleep(0.2), emit(1000), sys.exit(5))).start()",
        0,
    ),
    "asyncio": (
        """
import asyncio
async def main():
    async def some(k): emit(100, 100 * k)
    await asyncio.gather(*(some(k) for k in range(10)))
asyncio.run(main())
""",
        0,
    ),
    "asyncio, cancelled": (
        """
import asyncio
async def main():
    try: await asyncio.sleep(60)
    finally: emit(1000)
async def outer():
    task = asyncio.create_task(main())
    await asyncio.sleep(0)
    task.cancel()
asyncio.run(outer())
""",
        0,
    ),
    "executor": (
        """
from concurrent.futures import ThreadPoolExecutor
ThreadPoolExecutor(1).submit(emit, 1000)
""",
        0,
    ),
    "Ctrl-C": ("emit(1000); signal.raise_signal(signal.SIGINT)", 1),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_script_that_emits_and_ends_delivers(destination: Destination, ending: str) -> None:
    script, status = ENDINGS[ending]
    ended = run(script, with_options(destination))
    if ending == "Ctrl-C":
        assert ended.status in (-signal.SIGINT, 1, 130)
    else:
        assert ended.status == status
    assert ended.out == ""
    assert ended.err == "" or (status == 1 and ended.err.count("Traceback") == 1 and "streamll" not in ended.err)
    assert numbers(destination) == list(range(1000))


def test_what_is_emitted_behind_the_end_is_refused_and_disturbs_nobody(destination: Destination) -> None:
    before = """
import atexit, os
atexit.register(lambda: print(streamll.emit("late", data={}), sink().refused.get("stopped")))
class Last:
    def __del__(self):
        os.write(1, b"%d\\n" % streamll.emit("later", data={}))
"""
    # Functions that were registered before streamll was imported run behind its own.
    ended = run("last = Last()\nemit(100)\n", with_options(destination), head=before + HEAD)
    assert (ended.status, ended.out, ended.err) == (0, "False 1\n0\n", "")
    assert numbers(destination) == list(range(100))


def test_daemon_threads_may_emit_to_the_very_end(destination: Destination) -> None:
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
    ended = run(script, with_options(destination, buffer_overflow_strategy="drop_newest"))
    assert ended.status == 0
    assert "Traceback" not in ended.err
    assert "Fatal" not in ended.err
    assert numbers(destination)[:100] == list(range(100))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_fork_during_the_exit(destination: Destination) -> None:
    script = """
import atexit
def last():
    if os.fork() == 0:
        emit(10, 1000)  # and the child goes on to end as its parent does
    else:
        emit(10, 10)
        os.wait()
emit(10)
atexit.register(last)
"""
    ended = run(script, with_options(destination))
    assert (ended.status, ended.err) == (0, "")
    assert sorted(numbers(destination)) == [*range(20), *range(1000, 1010)]


@pytest.mark.parametrize("broker", ["dead", "refusing", "frozen"])
def test_the_exit_keeps_its_time_and_says_what_is_lost(request: pytest.FixtureRequest, kind: str, broker: str) -> None:
    if broker == "dead":
        url = DEAD[kind]
    elif broker == "frozen":
        servers = (request.getfixturevalue("own_redis"), request.getfixturevalue("own_rabbitmq"))
        url = frozen(kind, *servers)
    elif kind == "redis":
        url = request.getfixturevalue("own_redis")(requirepass="right").url.replace("right", "sesame") + "?stream=app"
    else:
        parts = urlsplit(request.getfixturevalue("rabbitmq_server").url)
        place = parts.netloc.rpartition("@")[2]
        url = urlunsplit(parts._replace(netloc=f"nobody:sesame@{place}", query="queue=app"))
    ended = run("emit(50); sys.exit(7)", url)
    assert (ended.status, ended.out) == (7, "")
    assert ended.seconds < SLACK
    assert ended.err.count("stopped before all of its events were delivered: 50 ") == 1
    assert "Traceback" not in ended.err
    assert "sesame" not in ended.err


@pytest.mark.parametrize("broker", ["alive", "dead"])
def test_ctrl_c_ends_promptly(destination: Destination, kind: str, broker: str) -> None:
    url = with_options(destination) if broker == "alive" else DEAD[kind]
    process = start("emit(100)\nprint('ready', flush=True)\nwhile True: emit(1); time.sleep(0.01)", url)
    assert hear(process) == "ready"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=50)
    assert time.monotonic() - began < SLACK
    assert process.returncode in (-signal.SIGINT, 1, 130)
    assert err.count("Traceback") == 1  # the script's own
    if broker == "alive":
        assert numbers(destination)[:100] == list(range(100))


def test_ctrl_c_twice_does_not_wait(
    kind: str, own_redis: Callable[..., RedisServer], own_rabbitmq: Callable[..., RabbitMQServer]
) -> None:
    url = f"{frozen(kind, own_redis, own_rabbitmq)}&exit_timeout=300"
    script = """
import atexit
emit(100)
atexit.register(lambda: print("ending", flush=True))
"""
    process = start(script, url)
    assert hear(process) == "ending"
    time.sleep(0.5)  # until the exit waits for the sink; were it earlier, it would be waited for no longer either
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=50)
    assert time.monotonic() - began < SLACK
    assert "interrupted while the last events were being delivered" in err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM between processes")
def test_sigterm_ends_it_at_once_as_ever(destination: Destination) -> None:
    process = start(
        "emit(100)\nstreamll.flush(20)\nprint('ready', flush=True)\ntime.sleep(50)", with_options(destination)
    )
    assert hear(process) == "ready"
    process.terminate()
    _, err = process.communicate(timeout=50)
    assert (process.returncode, err) == (-signal.SIGTERM, "")
    assert numbers(destination) == list(range(100))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM between processes")
def test_sigterm_with_a_handler_that_exits_delivers(destination: Destination) -> None:
    script = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
emit(100)
print("ready", flush=True)
time.sleep(50)
"""
    process = start(script, with_options(destination, flush_interval=300))
    assert hear(process) == "ready"
    process.terminate()
    _, err = process.communicate(timeout=50)
    assert (process.returncode, err) == (143, "")
    assert numbers(destination) == list(range(100))
