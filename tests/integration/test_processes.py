"""Forks, at any moment: what the child is, that the parent is undisturbed, and what the broker sees of both."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamll.ids import parent_of
from tests.contract.destinations import Destination, RabbitMQDestination, RedisDestination
from tests.fixtures.rabbitmq import RabbitMQServer
from tests.fixtures.redis import RedisServer
from tests.fixtures.tls import TLSFiles
from tests.fixtures.waiting import wait_until
from tests.integration.programs import by_producer, hear, numbers, run, start, tell, with_options

pytestmark = [
    pytest.mark.integration,
    pytest.mark.redis,
    pytest.mark.rabbitmq,
    pytest.mark.e2e,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork"),
]


@pytest.fixture(params=["redis", "rabbitmq"])
def destination(request: pytest.FixtureRequest) -> Iterator[Destination]:
    """A place on a server that others use too."""
    server = request.getfixturevalue(f"{request.param}_server")
    found = RedisDestination(server) if request.param == "redis" else RabbitMQDestination(server)
    with contextlib.closing(found):
        yield found


@pytest.fixture(params=["redis", "rabbitmq"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which broker; for tests that need one of their own."""
    return str(request.param)


MOMENTS = {
    "idle": "emit(10); streamll.flush(30); pids = [child(lambda: emit(10, 1000))]",
    "importing the client library": "emit(10); pids = [child(lambda: emit(10, 1000)) for _ in range(3)]",
    "never started": "pids = [child(lambda: emit(10, 1000))]; emit(10)",
    "stopped": "emit(10); streamll.shutdown(30); pids = [child(lambda: streamll.emit('no') and sys.exit(1))]",
    "delivering, from several threads": """
def forever():
    while not over:
        emit(50); breathe()
def fork():
    pids.extend(child(lambda: emit(10, 1000)) for _ in range(10))
over, pids = False, []
emitting = [threading.Thread(target=forever) for _ in range(2)]
forking = [threading.Thread(target=fork) for _ in range(2)]
for thread in emitting + forking: thread.start()
for thread in forking: thread.join()
over = True
for thread in emitting: thread.join()
""",
    "the buffer's lock is held": """
from streamll.api import sinks
held, done = threading.Event(), threading.Event()
def hold():
    with sinks()[0]._buffer._lock:
        held.set(); done.wait(30)
emit(10)
threading.Thread(target=hold).start()
held.wait(30)
pids = [child(lambda: emit(10, 1000))]
done.set()
""",
    "configuring": """
from streamll import api
held, done = threading.Event(), threading.Event()
def hold():
    with api._configuring:
        held.set(); done.wait(30)
emit(10)
threading.Thread(target=hold).start()
held.wait(30)
def configure_anew():
    streamll.configure(sinks=[os.environ["SINK"]])
    emit(10, 1000)
pids = [child(configure_anew)]
done.set()
""",
    "in a signal handler": """
pids = []
def handle(*_):
    pids.append(child(lambda: emit(10, 1000)))
    if len(pids) < 10:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001)
i = 0
while len(pids) < 10:
    emit(1, i); i += 1
    if i % 100 == 0: breathe()
""",
    "in a put, as by a finaliser": """
pids = []
def called(frame, what, argument):
    inside = frame.f_code.co_name == "_put" and frame.f_globals["__name__"] == "streamll.runtime.buffer"
    if inside and what == "call" and len(pids) < 3:
        sys.setprofile(None)
        pids.append(child(lambda: emit(10, 1000)))
        sys.setprofile(called)
emit(10)
sys.setprofile(called)
emit(10, 10)
sys.setprofile(None)
""",
    "on the worker's thread": """
from streamll.api import sinks
pids = []
def delivered(report):
    if not pids:
        pids.append(child(lambda: threading.Thread(target=emit, args=(10, 1000)).start() or time.sleep(0.1)))
sinks()[0]._worker._reports._callback = delivered
emit(10); streamll.flush(30)
while not pids: time.sleep(0.001)  # it is told after the flush is
""",
    "in a child": "emit(10); pids = [child(lambda: (emit(10, 1000), streamll.flush(30), status_of(child(lambda: emit(10, 2000))) and sys.exit(1)))]",
}


@pytest.mark.parametrize("durability", ["memory", "process"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_child_works_and_the_parent_is_undisturbed(
    destination: Destination, moment: str, durability: str, tmp_path: Path
) -> None:
    script = (
        MOMENTS[moment]
        + """
statuses = [status_of(pid) for pid in pids]
streamll.flush(30)
assert statuses == [0] * len(pids), statuses
numbers = sink()
assert numbers.balanced and numbers.failed_batches == 0 and numbers.defects == 0, numbers
print(numbers.producer, numbers.accepted, len(pids))
"""
    )
    ended = run(script, with_options(destination, durability=durability, spool_dir=tmp_path))
    assert (ended.status, ended.err) == (0, "")
    parent, accepted, children = ended.out.split()
    found = by_producer(destination)
    # The parent's own are all there, and nobody else's are under its name.
    own = found.pop(parent, [])
    assert len(own) == int(accepted)
    assert all(event.data["i"] < 1000 or event.data["i"] == n for n, event in enumerate(own))
    expected = 0 if moment == "stopped" else int(children) + (moment == "in a child")
    assert len(found) == expected
    for producer, events in found.items():
        first = 2000 if parent_of(producer) != parent and moment == "in a child" else 1000
        if moment != "configuring":
            assert parent_of(producer) == parent or first == 2000
        assert [event.data["i"] for event in events] == list(range(first, first + 10))


def test_what_the_worker_imports_is_whole_before_a_fork(destination: Destination) -> None:
    script = """
from streamll.runtime import fork
class Watch:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread() and not fork._importing._is_owned():
            print(name)
sys.meta_path.insert(0, Watch())
emit(10)
streamll.flush(30)
streamll.configure(sinks=["redis://127.0.0.1:1/0?stream=none", "amqp://nobody:wrong@127.0.0.1:1/?queue=none"])
emit(10)
streamll.flush(1)
streamll.shutdown(1)
"""
    ended = run(script, with_options(destination))
    assert ended.out == ""
    assert ended.status == 0


WORKERS = {
    "Process": """
for i in range(6):
    process = context.Process(target=work, args=(i,))
    process.start()
    process.join()
    assert process.exitcode == 0
""",
    "Pool": """
with context.Pool(2, maxtasksperchild=1) as pool:
    pool.map(work, range(6), chunksize=1)
    pool.close()
    pool.join()
""",
    "ProcessPoolExecutor": """
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(2, mp_context=context) as pool:
    list(pool.map(work, range(6)))
""",
    "nested": """
process = context.Process(target=nested)
process.start()
process.join()
assert process.exitcode == 0
""",
}


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("workers", WORKERS)
def test_children_of_multiprocessing_deliver_what_they_emit(
    destination: Destination, method: str, workers: str, tmp_path: Path
) -> None:
    # Their workers would linger for long: what is there is there because of their ends.
    script = f"""
import multiprocessing
context = multiprocessing.get_context({method!r})
streamll.emit("imported", data={{"i": -1}})
def work(i):
    emit(1, i)
def nested():
    {WORKERS["Process"].replace(chr(10), chr(10) + "    ")}
if __name__ == "__main__":
    {WORKERS[workers].replace(chr(10), chr(10) + "    ")}
"""
    ended = run(script, with_options(destination, flush_interval=300), folder=tmp_path)
    assert (ended.status, ended.out, ended.err) == (0, "", "")
    found = by_producer(destination)
    assert sorted(n for n in numbers(destination) if n >= 0) == list(range(6))
    # A child that imports the program anew is no fork, and emits what the program emits.
    forked = [producer for producer in found if parent_of(producer)]
    imported = [events[0].event_type == "imported" for events in found.values()]
    if method == "fork":
        assert (len(found) - len(forked), sum(imported)) == (1, 1)
    else:
        assert forked == []
        assert all(imported)


def test_a_child_that_just_ends_delivers_what_it_flushed(destination: Destination) -> None:
    script = """
pid = os.fork()
if pid == 0:
    emit(10)
    streamll.flush(30)
    emit(10, 10)
    os._exit(0)
assert status_of(pid) == 0
"""
    ended = run(script, with_options(destination, flush_interval=300))
    assert (ended.status, ended.out, ended.err) == (0, "", "")
    assert numbers(destination) == list(range(10))


@pytest.mark.parametrize("phase", ["in flight", "connecting"])
def test_a_fork_while_the_broker_is_frozen(
    phase: str, own_redis: Callable[..., RedisServer], own_rabbitmq: Callable[..., RabbitMQServer], kind: str
) -> None:
    server: RedisServer | RabbitMQServer = own_redis() if kind == "redis" else own_rabbitmq()
    place = RedisDestination(server) if isinstance(server, RedisServer) else RabbitMQDestination(server)
    script = """
def step():
    print(flush=True)
    input()
if PHASE == "in flight":
    emit(10); streamll.flush(30)
step()  # freezes
emit(10, 10)
while not sink().in_flight: time.sleep(0.001)
time.sleep(0.05)
def delivers_later():
    emit(10, 1000)
    while not sink().in_flight: time.sleep(0.001)
    os.write(told, b".")
tell, told = os.pipe()
pid = child(delivers_later)
os.read(tell, 1)
step()  # thaws
assert streamll.flush(60) and status_of(pid) == 0
print(sink().producer, sink().failed_batches)
"""
    url = with_options(place, send_timeout=60, connect_timeout=60)
    with start(script.replace("PHASE", repr(phase)), url) as process:
        hear(process)
        server.freeze()
        tell(process)
        hear(process)
        server.thaw()
        out, err = process.communicate("\n", timeout=100)
    assert (process.returncode, err) == (0, "")
    producer, failures = out.split()
    assert failures == "0"
    found = by_producer(place)
    assert [event.data["i"] for event in found.pop(producer)] == list(range(0 if phase == "in flight" else 10, 20))
    assert [[event.data["i"] for event in events] for events in found.values()] == [list(range(1000, 1010))]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_the_broker_sees_the_end_of_a_parent_whose_child_lives(
    kind: str,
    tls: bool,
    tls_files: TLSFiles,
    own_redis: Callable[..., RedisServer],
    own_rabbitmq: Callable[..., RabbitMQServer],
) -> None:
    script = """
emit(10)
assert streamll.flush(30)
if os.fork() == 0:
    print("forked", flush=True)
    input()
    emit(10, 1000)
    ok = streamll.flush(30)
    print(ok, flush=True)
    os._exit(0)
time.sleep(100)
"""
    certified = tls_files if tls else None
    if kind == "redis":
        redis = own_redis(tls=certified)
        place: Destination = RedisDestination(redis)
        base = redis.tls_url if tls else redis.url

        def connections() -> int:
            with redis.client() as client:
                return len(client.client_list()) - 1
    else:
        rabbitmq = own_rabbitmq(tls=certified)
        place = RabbitMQDestination(rabbitmq)
        base = f"{rabbitmq.tls_url}?cacertfile={tls_files.authority}" if tls else rabbitmq.url

        def connections() -> int:
            return len(rabbitmq.ctl("list_connections", "pid").split()[1:])

    url = f"{base}{'&' if '?' in base else '?'}{place.url().partition('?')[2]}"
    with start(script, url) as process:
        assert hear(process) == "forked"
        assert connections() == 1
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert wait_until(lambda: connections() == 0)
        tell(process)
        assert hear(process) == "True"
    assert sorted(numbers(place)) == [*range(10), *range(1000, 1010)]


def test_a_callback_that_forks_on_the_workers_thread_does_not_take_the_deliveries_along(
    destination: Destination,
) -> None:
    script = """
import streamll.api
pids = []
def delivered(report):
    if not pids:
        pids.append(os.fork())  # the child goes on from here as well
streamll.api.sinks()[0]._worker._reports._callback = delivered
emit(100)
streamll.flush(30)
while not pids: time.sleep(0.001)  # it is told after the flush is
print(status_of(pids[0]))
"""
    ended = run(script, with_options(destination, batch_size=10))
    assert (ended.status, ended.out, ended.err) == (0, "0\n", "")
    stored = destination.stored()
    assert len({(event.producer, event.seq) for event in stored}) == len(stored)
    assert len({event.producer for event in stored}) == 1
    assert numbers(destination) == list(range(100))
