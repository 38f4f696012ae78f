"""A real Celery worker: a span for each run of a task, in the execution of whoever sent it, in a real Redis."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, signals
from celery.contrib.testing.worker import start_worker
from celery.exceptions import WorkerLostError

import streamll
from streamll.consumers import RedisConsumer
from streamll.integrations.celery import CeleryHook, instrument_celery
from tests.fixtures.redis import RedisEndpoint, RedisServer
from tests.fixtures.waiting import PATIENCE, wait_until
from tests.integration.web import delivered

pytestmark = [pytest.mark.integration, pytest.mark.e2e, pytest.mark.redis]

app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
app.conf.task_default_queue = f"streamll-{uuid.uuid4().hex}"
app.conf.broker_transport_options = {"polling_interval": 0.005}
app.conf.broker_connection_retry_on_startup = False
app.conf.worker_hijack_root_logger = False


def find_price(order: int) -> int:
    with streamll.span("look up", order=order):
        return order * 2


def raise_error(secret: str) -> None:
    raise LookupError("no such thing")


def try_often(self: Any) -> str:
    if self.request.retries < 2:
        raise self.retry(exc=TimeoutError("not yet"), countdown=0)
    return "done"


def do_nothing() -> None:
    pass


price: Any = app.task(name="shop.price")(find_price)
fail: Any = app.task(name="shop.fail")(raise_error)
nothing: Any = app.task(name="shop.nothing")(do_nothing)
stubborn: Any = app.task(name="shop.stubborn", bind=True, max_retries=2)(try_often)


@pytest.fixture(scope="module")
def worker() -> Iterator[None]:
    """A worker in a thread of this process."""
    over = threading.Event()

    def knock() -> None:
        while not over.wait(0.02):  # a worker that waits for a message looks every two seconds whether it is to end
            nothing.delay()

    knocking = threading.Thread(target=knock)
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=PATIENCE):
        yield
        knocking.start()
    over.set()
    knocking.join()
    root.setLevel(level)  # which Celery has set for the whole process
    root.handlers[:] = handlers


@pytest.fixture
def hook() -> Iterator[CeleryHook]:
    with instrument_celery() as hook:
        yield hook


def test_each_run_is_a_span_of_the_execution_that_sent_it(
    worker: None, hook: CeleryHook, redis_server: RedisEndpoint, cleanup_stream: str
) -> None:
    assert hook.start() is hook
    with delivered(redis_server, cleanup_stream) as found:
        sent = {}
        for order in range(20):
            with streamll.execution() as execution_id, streamll.span("sell") as sell:
                assert price.delay(order).get(timeout=PATIENCE, interval=0.005) == order * 2
                sent[execution_id] = order, sell.span_id
        with streamll.execution() as tried:
            assert stubborn.delay().get(timeout=PATIENCE, interval=0.005) == "done"
        with pytest.raises(LookupError):
            fail.delay("hunter2").get(timeout=PATIENCE, interval=0.005)
        assert wait_until(lambda: hook.stats().open == 0)
        with streamll.span("here") as here:
            price.apply((3,))
    by_execution = found.by_execution()
    for execution_id, (order, sell_id) in sent.items():
        spans = {event.operation: event for event in by_execution[execution_id]}
        run, look_up = spans[price.name], spans["look up"]
        assert look_up.data["order"] == order
        assert look_up.parent_span_id == run.span_id
        assert run.parent_span_id == sell_id
        assert (run.data["state"], run.data["retries"], run.level) == ("success", 0, "info")
        assert (run.data["queue"], run.method_name) == (app.conf.task_default_queue, "find_price")
    runs = by_execution[tried]
    assert [(run.data["state"], run.data["retries"]) for run in runs] == [("retry", 0), ("retry", 1), ("success", 2)]
    assert [run.data["retry"]["message"] for run in runs[:2]] == ["not yet", "not yet"]
    assert runs[1].parent_span_id == runs[0].span_id
    failed = found.one(fail.name)
    assert (failed.level, failed.data["state"], failed.data["error"]["message"]) == (
        "error",
        "failure",
        "no such thing",
    )
    assert "hunter2" not in str(found.events)
    (eager,) = [event for event in found.of(price.name) if event.data.get("eager")]
    assert eager.parent_span_id == here.span_id
    stats = hook.stats()
    assert (stats.spans, stats.open) == ({"success": 22, "retry": 2, "failure": 1}, 0)
    assert stats.published == 24


def test_revoked_ones_are_told_of(
    worker: None, hook: CeleryHook, redis_server: RedisEndpoint, cleanup_stream: str
) -> None:
    with delivered(redis_server, cleanup_stream) as found:
        with streamll.execution() as execution_id:
            result = price.apply_async((1,), expires=-1)
        assert wait_until(lambda: hook.stats().revoked == 1)
    revoked = next(event for event in found.events if event.event_type == "task_revoked")
    assert (revoked.operation, revoked.execution_id) == (price.name, execution_id)
    assert revoked.data == {"task_id": result.id, "terminated": False, "expired": True}


def test_a_run_whose_process_was_lost_is_an_error(
    hook: CeleryHook, redis_server: RedisEndpoint, cleanup_stream: str
) -> None:
    with delivered(redis_server, cleanup_stream) as found:
        lost = WorkerLostError("exited with signal 9")
        signals.task_failure.send(sender=price, task_id="7", exception=lost, einfo=None)
    (error,) = found.events
    assert (error.event_type, error.operation, error.level) == ("error", "shop.price", "error")
    assert (error.data["task_id"], error.data["error"]["message"]) == ("7", "exited with signal 9")
    assert hook.stats().lost == 1


def test_nothing_is_seen_before_and_afterwards(redis_server: RedisEndpoint, cleanup_stream: str) -> None:
    hook = CeleryHook()
    with delivered(redis_server, cleanup_stream) as found:
        price.apply((1,))
        with hook:
            assert hook.running
        hook.stop()
        price.apply((1,))
    assert [event.operation for event in found.events] == ["look up", "look up"]


PROGRAM = """
import os
import redis
from celery import Celery
import streamll
from streamll.integrations.celery import instrument_celery
app = Celery("shop", broker=os.environ["BROKER"], set_as_current=False)
app.conf.task_ignore_result = True
streamll.configure(sinks=[os.environ["SINK"]])
instrument_celery()
@app.task(name="shop.count")
def count(n):
    streamll.emit("counted", {"n": n})
    with redis.Redis.from_url(os.environ["BROKER"]) as client:
        client.incr("counted")
"""


def test_processes_of_a_pool_deliver_everything_before_they_end(
    hook: CeleryHook, own_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """The sink waits for an hour: what arrives was delivered because a process ended."""
    server = own_redis()
    (tmp_path / "program.py").write_text(PROGRAM)
    command = "--app program worker --pool prefork --concurrency 2 --without-gossip --without-mingle".split()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    sink = f"{server.url}?stream=events&flush_interval=3600&batch_size=5000&exit_timeout=30"
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", *command],
        cwd=tmp_path,
        env={**kept, "BROKER": server.url, "SINK": sink},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    sent = {}
    sender = Celery("sender", broker=server.url, set_as_current=False)
    with streamll.testing.capture(), server.client() as client:
        try:
            for n in range(6):
                with streamll.execution() as execution_id:
                    sender.send_task("shop.count", (n,))
                    sent[execution_id] = n
            counted = wait_until(lambda: client.get("counted") == b"6" or worker.poll() is not None)
            delivered_so_far = client.exists("events")
        finally:
            worker.terminate()
            said, _ = worker.communicate(timeout=PATIENCE)
            sender.close()
    assert counted, said
    assert not delivered_so_far
    with RedisConsumer(server.url, "events", follow=False) as consumer:
        events = [item.event for item in consumer if item.event is not None]
    assert {event.execution_id: event.data["n"] for event in events if event.event_type == "counted"} == sent, said
    assert {event.execution_id for event in events if event.operation == "shop.count"} == set(sent)
    assert len(events) == 12
