"""A real FastAPI application under a real server: a span for each request, in a real Redis, with nothing lost."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import uvicorn
from fastapi import APIRouter, BackgroundTasks, FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.staticfiles import StaticFiles
from websockets.sync.client import connect

import streamll
from streamll.integrations.asgi import StreamllMiddleware
from tests.fixtures.process import free_port
from tests.fixtures.redis import RedisEndpoint
from tests.fixtures.waiting import PATIENCE, wait_until
from tests.integration.web import delivered

pytestmark = [pytest.mark.integration, pytest.mark.e2e, pytest.mark.redis]

streaming = threading.Event()
"""Set while a response is streamed that has no end."""


def application() -> FastAPI:
    app = FastAPI()
    orders = APIRouter()

    @app.get("/health")
    async def health() -> str:
        return "well"

    @app.get("/items/{item}")
    async def read_item(item: int) -> dict[str, int]:
        with streamll.span("load", item=item):
            await asyncio.sleep(0.001)
            streamll.emit("loaded", {"item": item})
        return {"item": item}

    @orders.get("/orders/{order}")
    def read_order(order: int) -> int:  # not async: it runs on another thread
        with streamll.span("price"):
            return order

    app.include_router(orders, prefix="/v1")

    @app.get("/fail")
    async def fail() -> None:
        raise LookupError("no such thing")

    @app.get("/tokens")
    async def tokens() -> StreamingResponse:
        async def make() -> AsyncIterator[str]:
            for n in range(5):
                with streamll.span("token"):
                    yield str(n)

        return StreamingResponse(make())

    @app.get("/forever")
    async def forever() -> StreamingResponse:
        async def make() -> AsyncIterator[str]:
            streaming.set()
            while True:
                yield "more"
                await asyncio.sleep(0.001)

        return StreamingResponse(make())

    async def clean_up() -> None:
        with streamll.span("clean up"):
            await asyncio.sleep(0.02)

    @app.post("/later")
    async def later(tasks: BackgroundTasks) -> str:
        tasks.add_task(clean_up)
        return "soon"

    @app.websocket("/chat/{room}")
    async def chat(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            with streamll.span("say"):
                await websocket.send_text(f"{room}: {text}")

    app.mount("/static", StaticFiles(directory="tests/integration"))
    app.add_middleware(StreamllMiddleware, exclude=["/health"])
    return app


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where the application is served."""
    free = free_port()
    config = uvicorn.Config(application(), port=free, log_config=None, lifespan="on", ws="websockets-sansio")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    assert wait_until(lambda: server.started or not thread.is_alive())
    assert server.started
    yield free
    server.should_exit = True
    thread.join(PATIENCE)


def test_a_hundred_requests_at_once_lose_no_event(port: int, redis_server: RedisEndpoint, cleanup_stream: str) -> None:
    async def ask() -> dict[str, int]:
        """The execution of each request, and what it asked for."""
        asked = {}

        async def one(client: httpx.AsyncClient, n: int) -> None:
            with streamll.execution() as execution_id, streamll.span("ask"):
                asked[execution_id] = n
                response = await client.get(f"/items/{n}?token=secret", headers=streamll.inject({}))
            assert response.json() == {"item": n}

        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=PATIENCE) as client:
            await asyncio.gather(*(one(client, n) for n in range(100)))
            await client.get("/health")
        return asked

    with delivered(redis_server, cleanup_stream) as found:
        asked = asyncio.run(ask())
    assert len(found.events) == 400
    assert "secret" not in str(found.events)
    for execution_id, events in found.by_execution().items():
        spans = {event.operation: event for event in events}
        assert len(events) == 4
        (loaded,) = [event for event in events if event.event_type == "loaded"]
        load, request, ask_span = spans["load"], spans["GET /items/{item}"], spans["ask"]
        assert loaded.data["item"] == load.data["item"] == asked[execution_id]
        assert loaded.span_id == load.span_id
        assert load.parent_span_id == request.span_id
        assert request.parent_span_id == ask_span.span_id
        assert request.data["status"] == 200
        assert load.data["duration_ns"] <= request.data["duration_ns"] <= ask_span.data["duration_ns"]


def test_every_kind_of_answer_is_told_as_it_was(port: int, redis_server: RedisEndpoint, cleanup_stream: str) -> None:
    with (
        delivered(redis_server, cleanup_stream) as found,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client,
    ):
        assert client.get("/v1/orders/5").text == "5"
        assert client.get("/fail", headers={"connection": "close"}).status_code == 500  # the server closes it then
        assert client.get("/tokens").text == "01234"
        assert client.post("/later", content=b"x" * 70_000).text == '"soon"'
        assert client.get("/nowhere").status_code == 404
        assert b"e2e" in client.get("/static/test_fastapi_integration.py").content
        with connect(f"ws://127.0.0.1:{port}/chat/tea") as websocket:
            websocket.send("hello")
            assert websocket.recv() == "tea: hello"
        with socket.create_connection(("127.0.0.1", port)) as reader:
            reader.sendall(b"GET /forever HTTP/1.1\r\nHost: here\r\n\r\n")
            assert streaming.wait(PATIENCE)
            assert reader.recv(10)
        waiting = {"WS /chat/{room}", "GET /forever", "clean up"}
        assert wait_until(lambda: streamll.flush() and waiting <= operations(redis_server, cleanup_stream))
    order, price = found.one("GET /v1/orders/{order}"), found.one("price")
    assert (price.execution_id, price.parent_span_id) == (order.execution_id, order.span_id)
    assert order.method_name.endswith("read_order")
    failed = found.one("GET /fail")
    assert (failed.level, failed.data["error"]["message"]) == ("error", "no such thing")
    tokens = found.one("GET /tokens")
    assert tokens.data["first_byte_ns"] < tokens.data["duration_ns"]
    assert [event.parent_span_id for event in found.of("token")] == [tokens.span_id] * 5
    later, clean_up = found.one("POST /later"), found.one("clean up")
    assert later.data["duration_ns"] < clean_up.data["duration_ns"]
    assert clean_up.parent_span_id == later.span_id
    assert (later.data["response_bytes"], later.data["status"]) == (6, 200)
    nowhere = found.one("GET")
    assert (nowhere.data["status"], nowhere.data["path"], nowhere.level) == (404, "/nowhere", "info")
    assert found.one("GET /static/{path}").data["response_bytes"] > 1000
    chat, say = found.one("WS /chat/{room}"), found.one("say")
    assert (chat.data["accepted"], chat.data["messages_in"], chat.data["messages_out"]) == (True, 1, 1)
    assert (chat.data["disconnected"], chat.data["close_code"]) == (True, 1000)
    assert say.parent_span_id == chat.span_id
    forever = found.one("GET /forever")
    assert (forever.data["disconnected"], forever.data["status"]) == (True, 200)


def operations(server: RedisEndpoint, stream: str) -> set[str]:
    """What has arrived so far."""
    with streamll.consumers.RedisConsumer(server.url, stream, follow=False) as consumer:
        return {item.event.operation for item in consumer if item.event is not None}
