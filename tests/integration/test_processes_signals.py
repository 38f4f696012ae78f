"""Signals that ask a program to end: stop_on_signal, in processes of their own, with real brokers."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.contract.destinations import Destination, RabbitMQDestination, RedisDestination
from tests.fixtures.redis import RedisEndpoint, RedisServer
from tests.integration.programs import by_producer, hear, numbers, run, start, tell, with_options

pytestmark = [
    pytest.mark.integration,
    pytest.mark.redis,
    pytest.mark.rabbitmq,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes"),
]

DEAD = "redis://127.0.0.1:1/0?stream=app"
SLACK = 20.0
"""Seconds beyond an exit_timeout of two that no machine needs."""


@pytest.fixture(params=["redis", "rabbitmq"])
def destination(request: pytest.FixtureRequest) -> Iterator[Destination]:
    """A place on a server that others use too."""
    server = request.getfixturevalue(f"{request.param}_server")
    found = RedisDestination(server) if request.param == "redis" else RabbitMQDestination(server)
    with contextlib.closing(found):
        yield found


@pytest.fixture
def stream(redis_server: RedisEndpoint) -> Iterator[Destination]:
    """A stream on the shared Redis, where it is not the broker that matters."""
    found = RedisDestination(redis_server)
    with contextlib.closing(found):
        yield found


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[str, str]:
    """Send a signal, and return all that the program says until it ends."""
    process.send_signal(number)
    try:
        return process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


READY = "print('ready', flush=True)\n"
FOREVER = READY + "while True: time.sleep(10)\n"

INTERRUPTED = {
    "asleep": "emit(1000)\n" + FOREVER,
    "in emit": "i = 0\n" + READY + "while True: emit(100, i); i += 100; breathe()",
    "in a lock of its buffer": """
from streamll.api import sinks
emit(1000)
lock = sinks()[0]._buffer._lock
with lock:
    print("ready", flush=True)
    over = time.monotonic() + 1
    while time.monotonic() < over: pass
while True: time.sleep(10)
""",
    "in the log": """
import logging
handler = logging.StreamHandler()
logging.getLogger("streamll").addHandler(handler)
logging.getLogger("streamll").setLevel(logging.DEBUG)
emit(1000)
handler.acquire()
print("ready", flush=True)
over = time.monotonic() + 1
while time.monotonic() < over: pass
handler.release()
while True: time.sleep(10)
""",
    "in flush": "emit(1000)\n" + READY + "while True: streamll.flush()",
    "in a thread's join": "thread = threading.Thread(target=time.sleep, args=(50,), daemon=True); thread.start()\n"
    "emit(1000)\n" + READY + "thread.join()",
    "in asyncio": "import asyncio\nasync def main():\n emit(1000); print('ready', flush=True); await asyncio.sleep(50)\n"
    "asyncio.run(main())",
    "in configure": "emit(1000)\nstreamll.flush(30)\n"
    + READY
    + "while True: streamll.configure(sinks=[os.environ['SINK']])",
    "in shutdown": """
def forever():
    streamll.configure(sinks=[os.environ["SINK"]]); streamll.emit("tick", data={"i": 0}); streamll.shutdown(30)
emit(1000)
streamll.flush(30)
print("ready", flush=True)
while True: forever()
""",
    "in a fork": "emit(1000)\nstreamll.flush(30)\n" + READY + "while True: status_of(child(lambda: None))",
    "before anything was emitted": READY + "while True: time.sleep(10)",
}


@pytest.mark.parametrize("where", INTERRUPTED)
def test_what_is_buffered_is_delivered_and_the_status_is_the_signals(destination: Destination, where: str) -> None:
    process = start("streamll.stop_on_signal()\n" + INTERRUPTED[where], with_options(destination, flush_interval=5))
    assert hear(process) == "ready"
    time.sleep(0.05 if where == "in emit" else 0)
    _, err = end(process)
    assert process.returncode == -signal.SIGTERM
    assert "Traceback" not in err
    assert "stopped before" not in err
    if where == "before anything was emitted":
        assert by_producer(destination) == {}
    elif where == "in emit":
        assert numbers(destination) == list(range(len(numbers(destination))))
    else:
        assert [number for number in numbers(destination) if number or where != "in shutdown"][-999:] == list(
            range(1, 1000)
        )


@pytest.mark.parametrize("sink", ["dead", "frozen"])
def test_the_time_is_kept_and_what_is_lost_is_said(sink: str, own_redis: Callable[..., RedisServer]) -> None:
    url = DEAD
    if sink == "frozen":
        server = own_redis()
        server.freeze()
        url = f"{server.url}?stream=app"
    process = start("streamll.stop_on_signal()\nemit(50)\n" + FOREVER, url)
    assert hear(process) == "ready"
    began = time.monotonic()
    _, err = end(process)
    assert process.returncode == -signal.SIGTERM
    assert time.monotonic() - began < SLACK
    assert "Traceback" not in err
    assert err.count("stopped before all of its events were delivered: 50 ") == 1


def test_the_signal_once_more_ends_it_at_once(own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis()
    server.freeze()
    script = """
streamll.stop_on_signal()
emit(50)
print("ready", flush=True)
while streamll.emit("tick", data={}): time.sleep(0.01)
print("draining", flush=True)
while True: time.sleep(10)
"""
    process = start(script, f"{server.url}?stream=app&exit_timeout=300")
    assert hear(process) == "ready"
    process.terminate()
    assert hear(process) == "draining"
    began = time.monotonic()
    _, err = end(process)
    assert process.returncode == -signal.SIGTERM
    assert time.monotonic() - began < SLACK
    assert err == ""


def test_another_signal_ends_it_at_once_too(own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis()
    server.freeze()
    script = """
streamll.stop_on_signal(signal.SIGTERM, signal.SIGHUP)
emit(50)
print("ready", flush=True)
while streamll.emit("tick", data={}): time.sleep(0.01)
print("draining", flush=True)
while True: time.sleep(10)
"""
    process = start(script, f"{server.url}?stream=app&exit_timeout=300")
    assert hear(process) == "ready"
    process.terminate()
    assert hear(process) == "draining"
    end(process, signal.SIGHUP)
    assert process.returncode == -signal.SIGHUP


def test_a_handler_of_the_program_decides(stream: Destination) -> None:
    script = """
def handle(number, frame):
    print("handled", number == signal.SIGTERM, frame is not None, flush=True)
signal.signal(signal.SIGTERM, handle)
streamll.stop_on_signal()
emit(10)
print("ready", flush=True)
while not sink().delivered: time.sleep(0.001)
print("delivered", flush=True)
emit(10, 10)
input()
sys.exit(3)
"""
    process = start(script, with_options(stream, flush_interval=300))
    assert hear(process) == "ready"
    process.terminate()
    assert hear(process) == "handled True True"
    assert hear(process) == "delivered"  # long before the linger is over
    process.terminate()
    assert hear(process) == "handled True True"
    out, err = process.communicate("\n", timeout=60)
    assert (process.returncode, out, err) == (3, "", "")
    assert numbers(stream) == list(range(20))


def test_ctrl_c_is_an_exception_as_ever(stream: Destination) -> None:
    process = start("streamll.stop_on_signal(signal.SIGINT)\nemit(10)\n" + FOREVER, with_options(stream))
    assert hear(process) == "ready"
    _, err = end(process, signal.SIGINT)
    assert process.returncode in (-signal.SIGINT, 1, 130)
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert err.count("Traceback") == 1
    assert numbers(stream) == list(range(10))


def test_what_was_ignored_stays_ignored_and_undoing_puts_back_what_was(stream: Destination) -> None:
    script = """
def mine(*_): pass
def other(*_): pass
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, mine)
before = [signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM)]
with streamll.stop_on_signal(signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGUSR1) is not mine
    ours = signal.getsignal(signal.SIGTERM)
    with streamll.stop_on_signal():  # once more changes nothing
        assert signal.getsignal(signal.SIGTERM) is ours
    assert signal.getsignal(signal.SIGTERM) is ours
assert before == [signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM)]
undo = streamll.stop_on_signal()
ours = signal.getsignal(signal.SIGTERM)
signal.signal(signal.SIGTERM, lambda *args: ours(*args))  # somebody chains to it
undo.close()
emit(10)
streamll.flush(30)
signal.raise_signal(signal.SIGTERM)
print("not reached")
"""
    ended = run(script, with_options(stream))
    assert (ended.status, ended.out, ended.err) == (-signal.SIGTERM, "", "")


def test_wrong_uses_are_clear_errors() -> None:
    script = """
def refused(*signals):
    try:
        streamll.stop_on_signal(*signals)
    except streamll.ConfigurationError as error:
        print(error)
refused(signal.SIGKILL)
refused(signal.SIGCHLD)
refused(signal.SIGTERM, 12345)
refused("SIGTERM")
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
thread = threading.Thread(target=refused); thread.start(); thread.join()
"""
    ended = run(script, DEAD)
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert [line.split()[0] for line in lines] == ["SIGKILL", "SIGCHLD", "12345", "'SIGTERM'", "stop_on_signal()"]


def test_a_handler_that_python_does_not_know_is_refused() -> None:
    # Whoever embeds Python may have handlers in C, of which it only knows that they are none of its own.
    script = """
signal.getsignal = lambda number: None
try:
    streamll.stop_on_signal()
except streamll.ConfigurationError as error:
    print(error)
"""
    ended = run(script, DEAD)
    assert ended.out.startswith("SIGTERM has a handler that was not installed from Python")


def test_a_forked_child_drains_its_own_sinks(stream: Destination) -> None:
    script = """
streamll.stop_on_signal()
emit(10)
streamll.flush(30)
pid = os.fork()
if pid == 0:
    emit(10, 1000)
    print("ready", flush=True)
    while True: time.sleep(10)
input()
os.kill(pid, signal.SIGTERM)
print(status_of(pid), flush=True)
emit(10, 10)
"""
    process = start(script, with_options(stream, flush_interval=300))
    assert hear(process) == "ready"
    tell(process)
    assert hear(process) == str(-signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert min(by_producer(stream).values(), key=len)[0].data["i"] == 1000
    assert sorted(numbers(stream)) == [*range(20), *range(1000, 1010)]


def test_a_child_forked_while_its_parent_ends_was_not_asked_itself(
    stream: Destination, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    server.freeze()
    script = """
streamll.stop_on_signal()
emit(50)
print("ready", flush=True)
while streamll.emit("tick", data={}): time.sleep(0.01)
if os.fork() == 0:
    streamll.configure(sinks=[os.environ["OTHER"]])
    emit(10)
    print("child", flush=True)
    input()
    os.kill(os.getpid(), signal.SIGTERM)
    while True: time.sleep(10)
while True: time.sleep(10)
"""
    url = f"{server.url}?stream=app&exit_timeout=3"
    process = start(script, url, OTHER=with_options(stream, flush_interval=300))
    assert hear(process) == "ready"
    process.terminate()
    assert hear(process) == "child"
    process.wait(60)
    tell(process)
    process.communicate(timeout=60)  # the child holds the pipes until it ends
    assert numbers(stream) == list(range(10))


def test_children_that_are_terminated_deliver(stream: Destination) -> None:
    script = """
import multiprocessing
streamll.stop_on_signal()
def work(i):
    emit(1, i)
fork = multiprocessing.get_context("fork")
with fork.Pool(2) as pool:  # leaving the block terminates the workers
    pool.map(work, range(100))
"""
    ended = run(script, with_options(stream, flush_interval=300))
    assert (ended.status, ended.err) == (0, "")
    assert sorted(numbers(stream)) == list(range(100))


def test_during_the_exit_it_does_not_cut_the_last_deliveries_short(own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis()
    server.freeze()
    script = """
import atexit
atexit.register(lambda: print("after", flush=True))
streamll.stop_on_signal()
emit(50)
atexit.register(lambda: print("ready", flush=True))
"""
    process = start(script, f"{server.url}?stream=app&exit_timeout=30&send_timeout=60")
    assert hear(process) == "ready"
    time.sleep(0.3)  # until the exit waits for the sink, whichever moment it is
    process.terminate()
    time.sleep(0.3)
    server.thaw()
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert err == ""
    with server.client() as client:
        assert client.xlen("app") >= 50
