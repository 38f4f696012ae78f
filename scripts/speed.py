"""Shows what streamll costs and carries on this machine: emit, import, configure, Redis, RabbitMQ, the spool, audit.

    python scripts/speed.py [--redis URL] [--rabbitmq URL] [--seconds N]

Servers that are not given are started for the run, where their programs are here. Every figure is measured by this run.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, perf_counter_ns, process_time

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the fixtures that start real servers

import streamll
from streamll.models import StreamllEvent
from streamll.sinks.base import Sink

EVENT = {"text": "Hi", "index": 7}


def emit_cost(url: str, n: int = 20_000, rounds: int = 5) -> list[float]:
    """Nanoseconds of each emit into one sink whose worker runs."""
    streamll.configure(sinks=[url], buffer_size=200_000)
    times: list[int] = []
    for _ in range(rounds):
        for _ in range(n):
            start = perf_counter_ns()
            streamll.emit("token", operation="generate", data=EVENT)
            times.append(perf_counter_ns() - start)
        streamll.flush(60)
    clock = statistics.median(-perf_counter_ns() + perf_counter_ns() for _ in range(1000))
    streamll.shutdown(60)
    return sorted(time - clock for time in times)


def sustained(url: str, seconds: float) -> tuple[float, float, str]:
    """Events a second from emit to confirmed, the process's CPU microseconds an event, and the balance."""
    streamll.configure(sinks=[url], buffer_size=100_000, buffer_overflow_strategy="block", block_timeout=60)
    streamll.emit("warm_up")
    streamll.flush(30)
    start, cpu = perf_counter(), process_time()
    n = 0
    while perf_counter() - start < seconds:
        for _ in range(100):
            streamll.emit("token", operation="generate", data=EVENT)
        n += 100
    flushed = streamll.flush(60)
    elapsed, used = perf_counter() - start, process_time() - cpu
    (sink,) = streamll.stats().sinks.values()
    streamll.shutdown(30)
    balance = "balanced" if sink.balanced else "NOT BALANCED"
    lost = sink.accepted - sink.delivered
    return n / elapsed, used / n * 1e6, f"{balance}, {lost} not delivered, flushed: {flushed}, {sink.batches} batches"


def adoption_rate(n: int = 300_000) -> float:
    """Events a second that are read from what a dead process left: both passes, settled ones found and left out."""
    from streamll.delivery.outcome import Entry
    from streamll.pipeline import Pipeline
    from streamll.runtime.journal import Identity, Journal
    from streamll.runtime.spool import adopt, orphans

    record = Pipeline().encode(StreamllEvent(event_type="token", operation="generate", data=EVENT))
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder), Identity("speed", "", "0" * 16), spool_bytes=1 << 30)
        for seq in range(1, n + 1):
            journal.append(Entry(seq, record))
        journal.close(keep=True)
        start = perf_counter()
        (orphan,) = orphans(Path(folder))
        adopted = adopt(orphan)
        if adopted is None:
            raise RuntimeError("what was just written cannot be adopted")
        read = 0
        while batch := adopted.read(5000, 1 << 20):
            read += len(batch)
        elapsed = perf_counter() - start
        adopted.close(keep=False)
    if read != n:
        raise RuntimeError(f"{read} of {n} events were read")
    return n / elapsed


def audit_rate(url: str, n: int = 500_000) -> float:
    """Entries a second that `streamll audit` reads from a stream of the sink's own, its start-up included."""
    streamll.configure(sinks=[url], buffer_size=100_000, buffer_overflow_strategy="block", block_timeout=60)
    for _ in range(n):
        streamll.emit("token", operation="generate", data=EVENT)
    streamll.shutdown(60)
    start = perf_counter()
    subprocess.run([sys.executable, "-m", "streamll", "audit", url], check=True, stdout=subprocess.DEVNULL)
    return n / (perf_counter() - start)


def subprocess_ms(code: str, rounds: int = 9) -> float:
    """The median milliseconds that a new interpreter takes for some code."""

    def once() -> float:
        start = perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)  # our own code
        return (perf_counter() - start) * 1e3

    once()
    return statistics.median(once() for _ in range(rounds))


@contextmanager
def server(given: str | None, start: Callable[[], Sink | object]) -> Iterator[str | None]:
    """A server's URL: the given one, or that of a fresh one."""
    if given:
        yield given
        return
    try:
        fresh = start()
    except Exception as error:  # any reason is as good as another: the figure is left out, and it is said why
        print(f"  not measured: {error}")
        yield None
        return
    with fresh as running:  # type: ignore[attr-defined]
        yield running.url


def with_query(url: str, query: str) -> str:
    """Add to a URL's query."""
    return f"{url}{'&' if '?' in url else '?'}{query}"


def main() -> None:
    """Measure, and print each figure as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--redis", default=os.environ.get("REDIS_URL"))
    parser.add_argument("--rabbitmq", default=os.environ.get("RABBITMQ_URL"))
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    from tests.fixtures.rabbitmq import RabbitMQServer
    from tests.fixtures.redis import RedisServer

    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}")
    bare = subprocess_ms("pass")
    imported = subprocess_ms("import streamll") - bare
    used = subprocess_ms("import streamll; streamll.configure, streamll.emit, streamll.span, streamll.trace") - bare
    configured = "import streamll; streamll.configure(sinks=['redis://localhost:1/0', 'amqp://localhost:1/'])"
    print(f"import streamll: {imported:.0f} ms above the interpreter; with all public names used: {used:.0f} ms")
    print(f"configure() with two sinks: {subprocess_ms(configured) - bare - used:.0f} ms more")
    with server(args.redis, RedisServer) as url:
        if url:
            for durability in ("memory", "process", "disk"):
                with TemporaryDirectory() as folder:
                    query = f"stream=speed-emit&durability={durability}&spool_dir={folder}"
                    times = emit_cost(with_query(url, query))
                shown = {share: times[int(len(times) * share)] / 1e3 for share in (0.5, 0.99, 0.999)}
                print(
                    f"emit, worker running, durability={durability}: median {shown[0.5]:.2f} us, p99 {shown[0.99]:.2f} us, "
                    f"p99.9 {shown[0.999]:.0f} us"
                )
            print(f"adoption reads {adoption_rate():,.0f} events/s from the spool")
            print(f"audit reads {audit_rate(with_query(url, 'stream=speed-audit')):,.0f} entries/s from Redis")
            rate, cpu, balance = sustained(with_query(url, "stream=speed"), args.seconds)
            print(f"Redis: {rate:,.0f} events/s, {cpu:.2f} us of CPU an event, all told ({balance})")
    with server(args.rabbitmq, RabbitMQServer) as url:
        if url:
            sink = with_query(url, "exchange=speed&queue=speed")
            rate, cpu, balance = sustained(sink, args.seconds)
            print(f"RabbitMQ, persistent and confirmed: {rate:,.0f} events/s, {cpu:.1f} us of CPU an event ({balance})")


if __name__ == "__main__":
    main()
