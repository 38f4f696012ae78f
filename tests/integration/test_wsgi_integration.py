"""A real WSGI server with a thread for each request: a span for each, in a real Redis, with nothing lost."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import httpx
import pytest

import streamll
from streamll.integrations.wsgi import WSGIMiddleware
from tests.fixtures.redis import RedisEndpoint
from tests.fixtures.waiting import PATIENCE
from tests.integration.web import delivered

pytestmark = [pytest.mark.integration, pytest.mark.e2e, pytest.mark.redis]


def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    item = environ["PATH_INFO"].rpartition("/")[2]
    environ["streamll.route"] = "/items/{item}"
    if item == "none":
        raise LookupError("no such thing")
    start_response("200 OK", [("Content-Type", "text/plain")])
    with streamll.span("load", item=int(item)):
        yield item.encode()
    yield b"."


class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """Where the application is served."""
    with make_server("127.0.0.1", 0, WSGIMiddleware(application), Server, Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join(PATIENCE)


def test_a_hundred_requests_of_many_threads_lose_no_event(
    port: int, redis_server: RedisEndpoint, cleanup_stream: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(n: int) -> str:
        with streamll.execution() as execution_id, streamll.span("ask"):
            headers = streamll.inject({})
            assert client.get(f"/items/{n}", headers=headers).text == f"{n}."
        return execution_id

    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)
    with delivered(redis_server, cleanup_stream) as found, client:
        with ThreadPoolExecutor(16) as pool:
            asked = dict(zip(pool.map(ask, range(100)), range(100), strict=True))
        assert client.get("/items/none").status_code == 500
    assert len(found.events) == 301
    (failed,) = [event for event in found.events if event.level == "error"]
    assert failed.data["error"]["message"] == "no such thing"
    for execution_id, events in found.by_execution().items():
        spans = {event.operation: event for event in events}
        if execution_id != failed.execution_id:
            assert set(spans) == {"ask", "GET /items/{item}", "load"}
            request, load = spans["GET /items/{item}"], spans["load"]
            assert load.data["item"] == asked[execution_id]
            assert load.parent_span_id == request.span_id
            assert request.parent_span_id == spans["ask"].span_id
            assert (request.data["status"], request.data["response_bytes"]) == (200, len(str(load.data["item"])) + 1)
    assert "LookupError: no such thing" in capsys.readouterr().err  # the server's own word of it
