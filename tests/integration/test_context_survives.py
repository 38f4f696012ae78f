"""What is run elsewhere belongs to the span that it was asked for in: in other processes, and behind a broker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

import streamll
from streamll.consumers import RabbitMQConsumer, RedisConsumer
from streamll.testing import capture
from tests.fixtures.rabbitmq import RabbitMQEndpoint
from tests.fixtures.redis import RedisEndpoint

pytestmark = pytest.mark.integration

PROGRAM = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import streamll
from streamll.monitors.propagate import propagate

FILE, METHOD = sys.argv[1:]

def work(name):
    streamll.configure(sinks=[f"file://{FILE}"])
    with streamll.span(name):
        pass
    streamll.shutdown()

class Worker(multiprocessing.get_context(METHOD).Process):
    def run(self):
        work("subclass")

if __name__ == "__main__":
    context = multiprocessing.get_context(METHOD)
    streamll.configure(sinks=[f"file://{FILE}"])
    pool = context.Pool(1)
    with propagate() as propagator:
        with streamll.span("early"), streamll.bind(user=5, secret=object()):
            executor = ProcessPoolExecutor(1, mp_context=context)
            executor.submit(work, "executor").result()
        with streamll.span("request"), streamll.bind(user=6):
            executor.submit(work, "executor later").result()
            pool.map(work, ["pool"])
            for process in (context.Process(target=work, args=("process",)), Worker()):
                process.start()
                process.join()
                assert process.exitcode == 0, process.exitcode
        executor.submit(work, "nobody's").result()
    executor.shutdown()
    pool.terminate()
    streamll.shutdown()
    print(propagator.stats().calls, propagator.stats().processes)
"""

METHODS = [method for method in ("fork", "spawn", "forkserver") if os.name == "posix" or method == "spawn"]


@pytest.mark.parametrize("method", METHODS)
def test_in_other_processes(tmp_path: Path, method: str) -> None:
    """Whoever starts them, and however."""
    script, file = tmp_path / "program.py", tmp_path / "events.jsonl"
    script.write_text(PROGRAM)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(script), str(file), method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, env=environ, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "2"]
    spans = {
        event["operation"]: event for event in map(json.loads, file.read_text().splitlines()) if "operation" in event
    }
    expected = {"executor": "early", **dict.fromkeys(["executor later", "pool", "process", "subclass"], "request")}
    for name, parent in expected.items():
        assert spans[name]["parent_span_id"] == spans[parent]["span_id"], name
        assert spans[name]["execution_id"] == spans[parent]["execution_id"]
        assert spans[name]["data"]["user"] == (5 if parent == "early" else 6)
        assert "secret" not in spans[name]["data"]
    assert "parent_span_id" not in spans["nobody's"]
    assert len({spans[name]["execution_id"] for name in ("early", "request", "nobody's")}) == 3


def test_in_a_program_that_is_told_by_its_environment() -> None:
    """As one that no library of ours has started."""
    script = "import os, streamll\nwith streamll.extract(os.environ) as execution_id: print(execution_id)"
    with capture(), streamll.span("request") as request:
        environ: Any = streamll.inject(dict(os.environ))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, env=environ)
    assert done.stdout.strip() == request.execution_id, done.stderr


class TestBehindABroker:
    @pytest.fixture(autouse=True)
    def nothing_configured_afterwards(self) -> Iterator[None]:
        yield
        streamll.shutdown()

    @pytest.mark.redis
    def test_an_event_that_a_consumer_reads_from_redis_is_gone_on_from(
        self, redis_server: RedisEndpoint, cleanup_stream: str
    ) -> None:
        streamll.configure(sinks=[f"{redis_server.url}?stream={cleanup_stream}"])
        with streamll.span("order") as order:
            streamll.emit("order_placed", data={"n": 1})
        assert streamll.flush(10)
        with RedisConsumer(redis_server.url, cleanup_stream, follow=False) as consumer:
            handled = list(self.handle(consumer, "order_placed"))
        assert handled == [(order.execution_id, order.span_id)]

    @pytest.mark.rabbitmq
    def test_one_from_rabbitmq_too_and_messages_of_ones_own(
        self, rabbitmq_server: RabbitMQEndpoint, rabbitmq_connection: pika.BlockingConnection
    ) -> None:
        name = f"streamll-test-{uuid.uuid4().hex}"
        channel = rabbitmq_connection.channel()
        channel.exchange_declare(name, "topic", durable=True)
        channel.queue_declare(name, exclusive=False, auto_delete=True)
        channel.queue_bind(name, name, "#")
        try:
            streamll.configure(sinks=[f"{rabbitmq_server.url}?exchange={name}&dead_letter=false"])
            with streamll.span("order") as order:
                streamll.emit("order_placed")
                properties = pika.BasicProperties(headers=streamll.inject({}))
                channel.basic_publish("", f"{name}", b"mine", properties)
            assert streamll.flush(10)
            _, found, body = channel.basic_get(name, auto_ack=True)
            assert (body, found is not None) == (b"mine", True)
            assert found is not None
            with capture() as events, streamll.extract(found.headers), streamll.span("handle"):
                pass
            assert (events[0].execution_id, events[0].parent_span_id) == (order.execution_id, order.span_id)
            with RabbitMQConsumer(rabbitmq_server.url, queue=name, follow=False) as consumer:
                assert list(self.handle(consumer, "order_placed")) == [(order.execution_id, order.span_id)]
        finally:
            channel.exchange_delete(name)
            channel.queue_delete(name)

    @staticmethod
    def handle(consumer: Any, event_type: str) -> Iterator[tuple[str, str]]:
        """What a handler of events writes; returns the execution and the parent of each of its spans."""
        for received in consumer:
            if received.event.event_type == event_type:
                with capture() as events, streamll.extract(received), streamll.span("handle"):
                    pass
                yield events[0].execution_id, events[0].parent_span_id
            received.ack()
