"""Requests as WSGI tells of them, with no server: what spans say, and that what the server sees is as it was."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest

import streamll
from streamll.context import current, muted
from streamll.hub import hub
from streamll.integrations.wsgi import WSGIMiddleware
from streamll.models import StreamllEvent

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def environ(**more: Any) -> dict[str, Any]:
    made = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "/shop",
        "PATH_INFO": "/items/7",
        "QUERY_STRING": "token=abc",
        "SERVER_NAME": "here",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    return {**made, **more}


class Server:
    """What calls an application."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.written: list[bytes] = []

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
        self.said.append((status, headers, exc_info))
        return self.written.append


def ok(start_response: Any) -> Any:
    return start_response("200 OK", [("Content-Type", "text/plain")])


def test_a_request_is_a_span_for_as_long_as_its_response_is_made(events: list[StreamllEvent]) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        environ["streamll.route"] = "/items/{id}"
        ok(start_response)
        with streamll.span("inside"):
            yield b"abc"
            streamll.emit("between")
        yield b"de"

    server, before = Server(), current()
    body = WSGIMiddleware(app)(environ(HTTP_TRACEPARENT=f"00-{TRACE_ID}-{PARENT_ID}-01"), server.start_response)
    assert server.said == []  # as lazy as it was
    parts = []
    for part in body:
        assert current() is before  # what the server does is not part of it
        parts.append(part)
    body.close()  # type: ignore[attr-defined]  # servers look whether there is one
    assert parts == [b"abc", b"de"]
    between, inside, request = events
    assert (request.operation, request.level) == ("GET /items/{id}", "info")
    assert (request.execution_id, request.parent_span_id) == (TRACE_ID, PARENT_ID)
    assert inside.parent_span_id == request.span_id
    assert between.span_id == inside.span_id
    assert 0 < request.data.pop("first_byte_ns") <= request.data.pop("duration_ns")
    assert request.data == {
        "method": "GET",
        "path": "/shop/items/7",
        "route": "/items/{id}",
        "status": 200,
        "response_bytes": 5,
    }


def test_by_the_standard_librarys_own_validator_nothing_is_broken(events: list[StreamllEvent]) -> None:
    def lazily(environ: Any, start_response: Any) -> Iterable[bytes]:
        ok(start_response)(b"written")
        return iter([b"a", b"b"])

    server = Server()
    app = validator(WSGIMiddleware(validator(lazily)))
    body = app(environ(), server.start_response)
    assert list(body) == [b"a", b"b"]
    body.close()  # type: ignore[attr-defined]  # as above
    assert server.written == [b"written"]
    assert events[0].data["response_bytes"] == 9


@pytest.mark.parametrize("result", [[b"abc", b"d"], (b"abcd",)])
def test_a_list_reaches_the_server_as_it_is(result: Any, events: list[StreamllEvent]) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        ok(start_response)
        return result

    assert WSGIMiddleware(app)(environ(), Server().start_response) is result
    assert (events[0].data["response_bytes"], events[0].data["status"]) == (4, 200)


def test_a_file_reaches_the_server_as_it_is(events: list[StreamllEvent]) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        ok(start_response)
        return environ["wsgi.file_wrapper"](io.BytesIO(b"abc"))

    result = WSGIMiddleware(app)(environ(**{"wsgi.file_wrapper": FileWrapper}), Server().start_response)
    assert isinstance(result, FileWrapper)
    assert events[0].data["file"] is True


def test_errors_go_on_as_they_came_wherever_they_are_raised(events: list[StreamllEvent]) -> None:
    error = LookupError("gone")

    class Body:
        def __init__(self, where: str) -> None:
            self.where = where

        def __iter__(self) -> Iterator[bytes]:
            yield b"a"
            if self.where == "in a step":
                raise error

        def close(self) -> None:
            if self.where == "at its close":
                raise error

    def app(environ: Any, start_response: Any) -> Any:
        if environ["where"] == "at once":
            raise error
        start_response("500 Broken", [], None)
        return Body(environ["where"])

    for where in ("at once", "in a step", "at its close"):
        with pytest.raises(LookupError) as raised:  # noqa: PT012  # where it is raised is what differs
            body = WSGIMiddleware(app)(environ(where=where), Server().start_response)
            next(iter(body))
            if where == "in a step":
                next(iter(body))
            body.close()  # type: ignore[attr-defined]  # as above
        assert raised.value is error
    assert [(event.level, event.data["error"]["message"]) for event in events] == [("error", "gone")] * 3
    assert current().span_id == ""


def test_a_server_that_closes_early_was_left_by_its_client(events: list[StreamllEvent]) -> None:
    closed: list[bool] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        ok(start_response)
        try:
            while True:
                yield b"a"
        finally:
            closed.append(current().span_id != "")

    body = WSGIMiddleware(app)(environ(), Server().start_response)
    next(iter(body))
    body.close()  # type: ignore[attr-defined]  # as above
    body.close()  # type: ignore[attr-defined]  # as above
    assert closed == [True]
    assert [event.data["disconnected"] for event in events] == [True]


def test_tells_no_more_than_asked_for(events: list[StreamllEvent]) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("503 Later", [])
        return []

    asked = environ(HTTP_USER_AGENT="test", HTTP_COOKIE="secret", PATH_INFO="/caf\u00c3\u00a9")
    options: dict[str, Any] = {"headers": ["user-agent", "x-none"], "query": True, "exclude": ["/shop/health"]}
    WSGIMiddleware(app, **options)(asked, Server().start_response)
    WSGIMiddleware(app, **options)(environ(PATH_INFO="/health"), Server().start_response)
    assert [(event.data["headers"], event.data["query"]) for event in events] == [({"user-agent": "test"}, "token=abc")]
    assert (events[0].data["path"], events[0].level, events[0].operation) == ("/shop/café", "error", "GET")
    assert "secret" not in str(events)


def test_costs_nothing_while_nothing_is_configured(inactive: None) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        return environ, start_response

    given = environ(), Server().start_response
    assert WSGIMiddleware(app)(*given) == given  # type: ignore[comparison-overlap]  # that they are passed on is the point


def test_is_no_trouble_where_events_are_cut_off(events: list[StreamllEvent]) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        ok(start_response)
        yield b"a"

    with muted():
        assert list(WSGIMiddleware(app)(environ(), Server().start_response)) == [b"a"]
    assert events == []


def test_is_whose_stack_a_sampler_sees(events: list[StreamllEvent], monkeypatch: pytest.MonkeyPatch) -> None:
    frames: dict[int, Any] = {}
    monkeypatch.setattr(hub, "frames", frames)

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        ok(start_response)
        (span,) = frames.values()
        yield span.operation.encode()

    body = WSGIMiddleware(app)(environ(), Server().start_response)
    assert next(iter(body)) == b"GET"
    assert frames == {}
    body.close()  # type: ignore[attr-defined]  # as above
