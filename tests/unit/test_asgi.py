"""Requests as ASGI tells of them, one message after the other, with no server: what spans say, and that all is passed on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamll
from streamll.hub import hub
from streamll.integrations.asgi import StreamllMiddleware, route_of
from streamll.models import StreamllEvent

App = Callable[[Any, Any, Any], Awaitable[None]]

START = {"type": "http.response.start", "status": 200, "headers": []}
LAST = {"type": "http.response.body", "body": b"end"}
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = (b"traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01".encode())


def scope(kind: str = "http", path: Any = "/items/7", **more: Any) -> dict[str, Any]:
    made = {"type": kind, "path": path, "query_string": b"token=abc", "headers": [(b"user-agent", b"test")]}
    return {**made, **({"method": "GET"} if kind == "http" else {}), **more}


def serve(app: App, made: dict[str, Any], messages: Iterable[dict[str, Any]] = (), **options: Any) -> list[Any]:
    """What the server is sent, when it hands these messages over."""
    waiting, sent = list(messages), []

    async def receive() -> MutableMapping[str, Any]:
        return waiting.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        if message.get("body") == b"gone":
            raise OSError("the client is gone")
        sent.append(message)

    asyncio.run(StreamllMiddleware(app, **options)(made, receive, send))
    return sent


def sending(*messages: dict[str, Any]) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return app


class Route:
    path = "/items/{id}"


def endpoint() -> None:
    """Serves nothing."""


class TestRequests:
    def test_are_spans_of_the_execution_that_came_with_them(self, events: list[StreamllEvent]) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope.update(route=Route(), endpoint=endpoint)
            assert (await receive())["body"] == b"12345"
            with streamll.span("inside"):
                await send(START)
                await send({"type": "http.response.body", "body": b"abc", "more_body": True})
            await send(LAST)
            streamll.emit("afterwards")

        body = {"type": "http.request", "body": b"12345"}
        made = scope(headers=[TRACEPARENT, (b"cookie", b"secret")])
        sent = serve(app, made, [body])
        assert sent == [START, {"type": "http.response.body", "body": b"abc", "more_body": True}, LAST]
        inside, request, afterwards = events
        assert (request.operation, request.level) == ("GET /items/{id}", "info")
        assert (request.module_name, request.method_name) == (__name__, "endpoint")
        assert (request.execution_id, request.parent_span_id) == (TRACE_ID, PARENT_ID)
        assert inside.parent_span_id == afterwards.span_id == request.span_id
        durations = request.data.pop("first_byte_ns"), request.data.pop("duration_ns")
        assert 0 < durations[0] <= durations[1]
        assert request.data == {
            "method": "GET",
            "path": "/items/7",
            "route": "/items/{id}",
            "status": 200,
            "request_bytes": 5,
            "response_bytes": 6,
        }

    def test_tell_no_more_than_asked_for(self, events: list[StreamllEvent]) -> None:
        headers = [(b"User-Agent", b"test"), (b"authorization", b"secret"), TRACEPARENT]
        serve(sending(START, LAST), scope(headers=headers), headers=["user-agent"], query=True, trust=False)
        assert events[0].data["headers"] == {"user-agent": "test"}
        assert events[0].data["query"] == "token=abc"
        assert events[0].execution_id != TRACE_ID
        assert "secret" not in str(events)

    @pytest.mark.parametrize(("path", "spans"), [("/health", 0), ("/static/a.css", 0), ("/healthy", 1), ("/", 1)])
    def test_may_be_excluded(self, path: str, spans: int, events: list[StreamllEvent]) -> None:
        assert serve(sending(START, LAST), scope(path=path), exclude=["/health", "/static/*"]) == [START, LAST]
        assert len(events) == spans

    def test_cost_nothing_while_nothing_is_configured(self, inactive: None) -> None:
        seen: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append((scope, receive, send))

        given = scope(), object(), object()
        asyncio.run(StreamllMiddleware(app)(*given))  # type: ignore[arg-type]  # that they are passed on is the point
        assert seen == [given]

    @pytest.mark.parametrize("kind", ["lifespan", "something new"])
    def test_are_all_that_is_looked_at(self, kind: str, events: list[StreamllEvent]) -> None:
        message = {"type": f"{kind}.startup.complete"}
        assert serve(sending(message), {"type": kind}) == [message]
        assert events == []

    def test_that_fail_say_so_and_the_error_goes_on(self, events: list[StreamllEvent]) -> None:
        error = LookupError("gone")

        async def app(scope: Any, receive: Any, send: Any) -> None:
            raise error

        with pytest.raises(LookupError) as raised:
            serve(app, scope())
        assert raised.value is error
        assert (events[0].level, events[0].data["error"]["type"], events[0].data["incomplete"]) == (
            "error",
            "LookupError",
            True,
        )
        assert (events[0].operation, "status" in events[0].data) == ("GET", False)

    def test_that_answer_with_an_error_of_the_server_are_errors(self, events: list[StreamllEvent]) -> None:
        for status in (404, 503):
            serve(sending({**START, "status": status}, LAST), scope())
        assert [(event.data["status"], event.level) for event in events] == [(404, "info"), (503, "error")]

    def test_end_with_the_response_and_what_fails_later_is_an_event_of_its_own(
        self, events: list[StreamllEvent]
    ) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await sending(START, LAST)(scope, receive, send)
            assert len(events) == 1
            assert (await receive())["type"] == "http.disconnect"
            raise ArithmeticError("in the background")

        with pytest.raises(ArithmeticError):
            serve(app, scope(), [{"type": "http.disconnect"}])
        request, error = events
        assert "disconnected" not in request.data
        assert "error" not in request.data
        assert (error.event_type, error.data["error"]["type"], error.span_id) == (
            "error",
            "ArithmeticError",
            request.span_id,
        )

    def test_whose_client_goes_say_so(self, events: list[StreamllEvent]) -> None:
        async def waits(scope: Any, receive: Any, send: Any) -> None:
            await send(START)
            await receive()

        serve(waits, scope(), [{"type": "http.disconnect"}])
        with pytest.raises(OSError, match="the client is gone"):
            serve(sending(START, {**LAST, "body": b"gone"}), scope())
        assert [event.data["disconnected"] for event in events] == [True, True]
        assert [event.data["incomplete"] for event in events] == [True, True]

    @pytest.mark.parametrize(
        ("messages", "size"),
        [
            ([START, {"type": "http.response.pathsend", "path": "/a"}], 0),
            ([START, {"type": "http.response.zerocopysend", "file": 3}], 0),
            ([{**START, "trailers": True}, LAST, {"type": "http.response.trailers"}], 3),
            ([START, LAST, {"type": "http.response.debug"}], 3),
        ],
    )
    def test_end_however_the_body_does(self, messages: list[Any], size: int, events: list[StreamllEvent]) -> None:
        assert serve(sending(*messages), scope()) == messages
        assert len(events) == 1
        assert "incomplete" not in events[0].data
        assert events[0].data["response_bytes"] == size

    @settings(max_examples=40)
    @given(
        st.lists(
            st.dictionaries(st.sampled_from(["type", "status", "body", "code"]), st.none() | st.text() | st.integers())
        )
    )
    def test_of_no_known_shape_are_passed_on(self, messages: list[dict[str, Any]]) -> None:
        with hub.instead(lambda event: True):
            assert serve(sending(*messages), scope()) == messages
            assert serve(sending(*messages), scope("websocket")) == messages
            for broken in ({"type": "http"}, scope(path=None), scope(headers=[("a", 1)]), scope(headers=5)):
                assert serve(sending(*messages), broken, headers=["a"]) == messages

    def test_are_configured_with_words(self) -> None:
        with pytest.raises(TypeError, match="exclude"):
            StreamllMiddleware(sending(), exclude=[1])  # type: ignore[list-item]  # that it is refused is the point


class TestWebSockets:
    def test_are_one_span_each(self, events: list[StreamllEvent]) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope["path_template"] = "/chat/{room}"
            await send({"type": "websocket.accept"})
            while (await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": "x"})

        texts = [{"type": "websocket.receive", "text": "a"}] * 3
        serve(app, scope("websocket"), [*texts, {"type": "websocket.disconnect", "code": 1001}])
        event = events[0]
        assert event.operation == "WS /chat/{room}"
        assert event.data.pop("first_byte_ns") <= event.data.pop("duration_ns")
        assert event.data == {
            "method": "WS",
            "path": "/items/7",
            "route": "/chat/{room}",
            "accepted": True,
            "messages_in": 3,
            "messages_out": 3,
            "disconnected": True,
            "close_code": 1001,
        }

    @pytest.mark.parametrize(
        ("message", "found"),
        [
            ({"type": "websocket.close"}, {"close_code": 1000}),
            ({"type": "websocket.http.response.start", "status": 403}, {"status": 403}),
        ],
    )
    def test_may_be_refused(self, message: dict[str, Any], found: dict[str, Any], events: list[StreamllEvent]) -> None:
        serve(sending(message), scope("websocket"))
        assert events[0].data.items() >= {**found, "accepted": False}.items()


class Mount:
    path = "/static"


class TestRoutes:
    def test_are_what_the_framework_says_and_nothing_else(self) -> None:
        assert route_of(scope()) == ""
        assert route_of(scope(route=object())) == ""
        assert route_of(scope(route=Route())) == "/items/{id}"
        assert route_of(scope(route=Mount(), app_root_path="", root_path="/static")) == "/static/{path}"
        assert route_of(scope(route=Route(), app_root_path="/proxy", root_path="/proxy/v1")) == "/v1/items/{id}"
