"""WSGI: a span for each request, as a middleware that works under any framework.

What belongs here: the protocol (PEP 3333), as far as it tells of requests. What does not: what their spans say
(request.py).

The response is iterated as lazily as before, each step inside the span's scope, and closed when the server closes it.
What a server treats in a way of its own reaches it as it is: a list or tuple, whose length it may look at, and a file in
its own wrapper, which it may send without reading it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import Token
from time import perf_counter_ns
from typing import Any

from streamll.context import SCOPE, Scope
from streamll.hub import hub
from streamll.integrations.request import RequestSpan, Settings

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
Application = Callable[[Environ, Any], Iterable[bytes]]


class WSGIMiddleware:
    """Makes a span of each request: `app.wsgi_app = WSGIMiddleware(app.wsgi_app)`, or `app = WSGIMiddleware(app)`.

    Its operation is the method and the route, where the application puts the route's template into
    `environ["streamll.route"]` (Bottle's is found anyway); else the method. Its data has `method`, `path`, `route`,
    `status`, `duration_ns` (until the response is iterated to its end), `first_byte_ns`, `response_bytes`, `file` when a
    file was handed to the server, which sends it after the span's end, and `disconnected` when the server closed the
    response before its end. Its level is "error" when the application raised (`error`), or answered with 500 or more.

    Everything goes through unchanged, errors too. While nothing is configured to receive events, it does nothing.

    Args:
        app: The application.
        exclude: Paths without a span, such as "/health"; "/static/*" stands for all that begin so.
        headers: Names of request headers whose values go into the span's data, under `headers`.
        query: Whether the query string does, under `query`.
        trust: Whether the execution that comes in with the header `traceparent` is continued; False where anybody may
            send requests.

    Raises:
        TypeError: When names are not given as a list of strings.

    Example (Flask):
        app.wsgi_app = WSGIMiddleware(app.wsgi_app)

        @app.before_request
        def name_route():
            if request.url_rule:
                request.environ["streamll.route"] = request.url_rule.rule
    """

    def __init__(
        self,
        app: Application,
        *,
        exclude: Iterable[str] = (),
        headers: Iterable[str] = (),
        query: bool = False,
        trust: bool = True,
    ) -> None:
        self.app = app
        self._settings = Settings(exclude, headers, query, trust)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if not hub.active:
            return self.app(environ, start_response)
        path = _text(environ.get("SCRIPT_NAME", "")) + _text(environ.get("PATH_INFO", ""))
        if self._settings.excludes(path):
            return self.app(environ, start_response)
        request = _Request(environ, path, start_response, self._settings)
        with self._settings.around(
            (("traceparent", environ.get("HTTP_TRACEPARENT")), ("tracestate", environ.get("HTTP_TRACESTATE")))
        ):
            return request.run(self.app)


class _Request:
    """One request, from the call of the application to the end of its response."""

    def __init__(self, environ: Environ, path: str, start_response: StartResponse, settings: Settings) -> None:
        self._environ = environ
        self._start_response = start_response
        self._bytes = 0
        self._inside: Scope | None = None
        self.span = RequestSpan(environ.get("REQUEST_METHOD", ""), path)
        if settings.headers:
            found = {name: environ.get("HTTP_" + name.upper().replace("-", "_")) for name in settings.headers}
            self.span.set(headers={name: value for name, value in found.items() if value is not None})
        if settings.query:
            self.span.set(query=environ.get("QUERY_STRING", ""))

    def run(self, app: Application) -> Iterable[bytes]:
        """Call the application, and return what the server is to iterate."""
        self._inside = self.span._begin()
        with _Step(self):
            result = app(self._environ, self.start_response)
        wrapper = self._environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(result, wrapper):
            self.span.set(file=True)
            self.end()
            return result
        if type(result) is list or type(result) is tuple:
            for block in result:
                self.count(block)
            self.end()
            return result
        return _Body(self, result)

    def start_response(self, status: str, *args: Any, **named: Any) -> Callable[[bytes], object]:
        """The server's, seen."""
        write = self._start_response(status, *args, **named)
        if type(status) is str and status[:3].isdecimal():
            self.span.status(int(status[:3]))

        def counted(block: bytes) -> object:
            result = write(block)
            self.count(block)
            return result

        return counted

    def count(self, block: bytes) -> None:
        """A part of the body is out, or about to be."""
        if type(block) is bytes and block:
            self._bytes += len(block)
            self.span.first_byte()

    def end(self, error: BaseException | None = None) -> None:
        """The response has come to its end, or never will."""
        if not self.span.ended:
            route = self._environ.get("streamll.route") or getattr(self._environ.get("bottle.route"), "rule", "")
            self.span.route(route if isinstance(route, str) else "")
            self.span.set(response_bytes=self._bytes)
            self.span._end(perf_counter_ns(), error)


class _Step:
    """A `with` block in which the program works on a request: in the scope that it left off in."""

    __slots__ = ("_request", "_token")

    def __init__(self, request: _Request) -> None:
        self._request = request
        self._token: Token[Scope] | None = None

    def __enter__(self) -> None:
        inside = self._request._inside
        if inside is not None:
            self._token = SCOPE.set(inside)
            if hub.frames is not None:
                self._request.span._enter_frame(hub.frames, sys._getframe(1))

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._token is not None:
            self._request._inside = SCOPE.get()
            SCOPE.reset(self._token)
            self._request.span._leave_frame()
        if error is not None and not isinstance(error, StopIteration):
            self._request.end(error)


class _Body:
    """A response whose parts are made while the server sends it."""

    def __init__(self, request: _Request, result: Iterable[bytes]) -> None:
        self._request = request
        self._result = result
        self._parts: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        request = self._request
        try:
            with _Step(request):
                if self._parts is None:
                    self._parts = iter(self._result)
                block = next(self._parts)
        except StopIteration:
            request.end()
            raise
        request.count(block)
        return block

    def close(self) -> None:
        """The server is done with it, whether it has come to its end or not."""
        request = self._request
        if not request.span.ended:
            request.span.set(disconnected=True)
        close = getattr(self._result, "close", None)
        if close is not None:
            with _Step(request):
                close()
        request.end()


def _text(value: str) -> str:
    """What PEP 3333 hands over as Latin-1 is UTF-8 nearly always."""
    return value if value.isascii() else value.encode("latin-1", "replace").decode("utf-8", "replace")
