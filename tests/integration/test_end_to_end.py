"""Whole programs, watched, from their first event to what a reader gets back from a real broker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pika
import pytest

import streamll
from streamll.codec import decode
from streamll.monitoring import monitor
from streamll.sinks.rabbitmq import RabbitMQSink
from streamll.sinks.redis import RedisSink
from streamll.views.summary import summarise
from tests.fixtures.rabbitmq import RabbitMQEndpoint
from tests.fixtures.redis import RedisEndpoint
from tests.integration.test_rabbitmq_integration import drain
from tests.integration.watched import metric_totals, read_redis

pytestmark = [pytest.mark.integration, pytest.mark.e2e, pytest.mark.usefixtures("nothing_left_behind")]

LIBRARY = """
import hashlib


def fingerprint(number):
    return hashlib.sha256(b"x" * number * 1000).hexdigest()
"""

PROGRAM = """
import sys, threading
import streamll
from prints import fingerprint


def index(first, last):
    for number in range(first, last):
        with streamll.span("index", number=number):
            fingerprint(number)
            if number % 10 == 9:
                try:
                    raise KeyError(number)
                except KeyError:
                    streamll.capture_exception(number=number)


def fail():
    raise RuntimeError("this thread has had enough")


threads = [threading.Thread(target=index, args=(n * 50, n * 50 + 50)) for n in range(4)]
threads.append(threading.Thread(target=fail))
for thread in threads: thread.start()
for thread in threads: thread.join()
print("indexed", sys.argv[1:])
sys.exit(3)
"""


@pytest.mark.redis
def test_a_program_that_knows_nothing_of_it_is_run_and_watched(
    redis_server: RedisEndpoint, cleanup_stream: str, tmp_path: Path
) -> None:
    """`streamll run` with everything on: the program's output and status are its own, and a reader gets all of it."""
    program, report = tmp_path / "indexer.py", tmp_path / "report.json"
    program.write_text(PROGRAM)
    (tmp_path / "prints.py").write_text(LIBRARY)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "STREAMLL"))}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "streamll", "run", "--sink", f"{redis_server.url}?stream={cleanup_stream}"),
            *("--profile", "--memory", "--trace", "prints.*", "-o", str(report), str(program), "a", "-b"),
        ],
        capture_output=True,
        text=True,
        timeout=50,
        env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (3, "indexed ['a', '-b']\n"), done.stderr
    assert "this thread has had enough" in done.stderr
    found = json.loads(report.read_text())
    assert found["balanced"]
    events = read_redis(redis_server, cleanup_stream)
    assert found["sinks"]["redis"]["delivered"] == len(events)
    spans = [event for event in events if event.event_type == "span" and event.operation == "index"]
    assert sorted(event.data["number"] for event in spans) == list(range(200))
    traced = [event for event in events if event.event_type == "span" and "fingerprint" in event.operation]
    assert {event.parent_span_id for event in traced} == {event.span_id for event in spans}
    assert len(traced) == 200
    errors = [event for event in events if event.event_type == "error"]
    assert sorted(event.data["number"] for event in errors if "number" in event.data) == list(range(9, 200, 10))
    assert any("this thread has had enough" in json.dumps(event.data) for event in errors)
    rows = {row.operation: row for row in summarise(events).operations()}
    reported = {row["operation"]: row for row in found["operations"]["operations"]}
    assert rows["index"].calls == reported["index"]["calls"] == 200
    assert rows["index"].p95_ms == pytest.approx(reported["index"]["p95_ms"])
    assert found["memory"]
    assert found["profiler"]
    assert any(event.event_type == "memory" for event in events)


@pytest.mark.redis
@pytest.mark.rabbitmq
@pytest.mark.stress
def test_a_burst_of_events_with_a_thousand_attributes_each(
    stress_test_config: dict[str, int],
    redis_server: RedisEndpoint,
    cleanup_stream: str,
    rabbitmq_server: RabbitMQEndpoint,
    rabbitmq_connection: pika.BlockingConnection,
    bound_exchange: str,
) -> None:
    """Every attribute of every event comes back from both brokers, and what is secret among them does not."""
    burst, attributes = stress_test_config["burst"], stress_test_config["attributes"]
    to_redis = RedisSink(url=redis_server.url, stream_key=cleanup_stream)
    to_rabbitmq = RabbitMQSink(amqp_url=rabbitmq_server.url, exchange=bound_exchange)

    def made(number: int) -> dict[str, Any]:
        values = (number, f"text {number}", number / 7, None, True, [number, {"deep": number}])
        return {f"attribute_{n}": values[n % len(values)] for n in range(attributes)}

    with monitor([to_redis, to_rabbitmq], events={"retain": burst}) as watch:
        tracer: Any = watch.tools["events"]
        for number in range(burst):
            with streamll.span("burst", number=number, **made(number)):
                tracer.trace_event("wide", {**made(number), "password": "hunter2"})
    stats = streamll.shutdown(30)
    assert stats.balanced
    events = read_redis(redis_server, cleanup_stream)
    for event_type, more in (("span", {}), ("wide", {"password": "[redacted]"})):
        mine = [event for event in events if event.event_type == event_type]
        assert len(mine) == burst
        for number, event in enumerate(mine):
            expected = {**made(number), **more}
            assert {name: event.data[name] for name in expected} == expected
    assert len(tracer.get_events("wide")) + len(tracer.get_events("span")) <= burst
    messages, _ = drain(rabbitmq_connection, bound_exchange)
    assert [decode(body).data for _, body in messages] == [event.data for event in events]


@pytest.mark.redis
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_program_that_forks_while_it_is_watched(
    redis_server: RedisEndpoint, cleanup_stream: str, tmp_path: Path
) -> None:
    """Parent and children each tell of what they did, and of nothing twice."""
    program = textwrap.dedent(
        """
        import os, sys
        import streamll
        from streamll.monitors.metrics import counter
        streamll.monitor([sys.argv[1]], profile=True, memory=True)
        for n in range(10):
            counter("made").add(1, by="parent")
        children = []
        for child in range(3):
            pid = os.fork()
            if not pid:
                for n in range(20):
                    with streamll.span("child", n=n, child=child):
                        counter("made").add(1, by=f"child {child}")
                sys.exit(0)
            children.append(pid)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
        with streamll.span("parent"):
            counter("made").add(1, by="parent")
        """
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "STREAMLL"))}
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore::DeprecationWarning", "-c", program),
            f"{redis_server.url}?stream={cleanup_stream}",
        ],
        capture_output=True,
        text=True,
        timeout=50,
        env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (done.returncode, done.stderr) == (0, "")
    events = read_redis(redis_server, cleanup_stream)
    spans = [(event.data["child"], event.data["n"]) for event in events if event.operation == "child"]
    assert sorted(spans) == [(child, n) for child in range(3) for n in range(20)]
    assert sum(event.operation == "parent" for event in events) == 1
    made = {labels: total for (name, labels), total in metric_totals(events).items() if name == "made"}
    assert made == {("parent",): 11, **{(f"child {child}",): 20 for child in range(3)}}
