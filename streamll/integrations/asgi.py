"""ASGI: a span for each request and each websocket, as a middleware that works under any framework.

What belongs here: the protocol (https://asgi.readthedocs.io/en/latest/specs/www.html), as far as it tells of requests.
What does not: what their spans say (request.py). No framework is imported: of what one leaves in the connection's scope,
only the route is read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from re import Pattern
from typing import Any

from streamll.hub import hub
from streamll.integrations.request import RequestSpan, Settings
from streamll.spans import capture_exception

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]


class StreamllMiddleware:
    """Makes a span of each request: `app.add_middleware(StreamllMiddleware)`, or `app = StreamllMiddleware(app)`.

    Its operation is the method and the route ("GET /items/{id}"), as far as the framework says (FastAPI, Starlette,
    Litestar); else the method. Its data has `method`, `path`, `route`, `status`, `duration_ns` (to the last byte of the
    body), `first_byte_ns` (to the first one), `request_bytes` and `response_bytes`, `disconnected` when the client did
    not wait, and `incomplete` when the response has no end. Its level is "error" when the application raised (`error`),
    or answered with 500 or more. What the application does after the response, such as background tasks, still belongs
    to it, but takes no part in its duration; an error there is an event of its own.

    A websocket is one span from the handshake to the end: operation "WS /route", with `accepted`, `messages_in`,
    `messages_out`, `close_code`, and `disconnected` when the client closed it.

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

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection."""
        seen = self._look(scope, receive, send) if hub.active else None
        if seen is None:
            await self.app(scope, receive, send)
            return
        with self._settings.around(scope.get("headers")), seen.span as span:
            try:
                await self.app(scope, seen.receive, seen.send)
            except Exception as error:
                if span.ended:
                    capture_exception(error)
                raise
            finally:
                seen.leave()

    def _look(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> _Connection | None:
        connection = _KINDS.get(scope["type"])
        try:
            if connection is None or self._settings.excludes(scope["path"]):
                return None
            return connection(scope, receive, send, self._settings)
        except Exception:  # a scope of another shape: whether it will do is for the application to say
            return None


class _Connection:
    """One connection, seen by what goes through `receive` and `send`."""

    def __init__(self, method: str, scope: MutableMapping[str, Any], receive: Receive, send: Send, settings: Settings):
        self.scope = scope
        self._receive = receive
        self._send = send
        self.span = RequestSpan(method, scope["path"])
        if settings.headers:
            wanted = {name.encode("latin-1") for name in settings.headers}
            found = [(name.lower(), value) for name, value in scope["headers"]]
            kept = {name.decode("latin-1"): value.decode("latin-1") for name, value in found if name in wanted}
            self.span.set(headers=kept)
        if settings.query:
            self.span.set(query=scope.get("query_string", b"").decode("latin-1"))

    async def receive(self) -> Message:
        message = await self._receive()
        try:
            self._received(message["type"], message)
        except Exception:  # noqa: S110  # a message of another shape, as above
            pass
        return message

    async def send(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:  # since version 2.4 of the protocol, the way to tell that the client is gone
            self.disconnected()
            raise
        try:
            self._sent(message["type"], message)
        except Exception:  # noqa: S110  # as above, and the server has taken it
            pass

    def disconnected(self) -> None:
        self.span.set(disconnected=True)

    def leave(self) -> None:
        """The application is done."""
        self._name()

    def _name(self) -> None:
        try:
            self.span.route(route_of(self.scope), self.scope.get("endpoint"))
        except Exception:  # noqa: S110  # a framework that keeps something else there
            pass

    def _received(self, kind: str, message: Message) -> None:
        raise NotImplementedError

    def _sent(self, kind: str, message: Message) -> None:
        raise NotImplementedError


class _Http(_Connection):
    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send, settings: Settings) -> None:
        super().__init__(scope["method"], scope, receive, send, settings)
        self._bytes_in = self._bytes_out = 0
        self._trailers = False

    def leave(self) -> None:
        if not self.span.ended:
            self._put_numbers()
            self.span.set(incomplete=True)

    def _received(self, kind: str, message: Message) -> None:
        if kind == "http.request":
            self._bytes_in += len(message.get("body", b""))
        elif kind == "http.disconnect" and not self.span.ended:  # afterwards it says no more than that it is over
            self.disconnected()

    def _sent(self, kind: str, message: Message) -> None:
        if kind == "http.response.start":
            self._trailers = bool(message.get("trailers"))
            self.span.status(int(message["status"]))
        elif kind == "http.response.body":
            body = message.get("body", b"")
            if body:
                self._bytes_out += len(body)
                self.span.first_byte()
            if not message.get("more_body") and not self._trailers:
                self._end()
        elif (
            kind == "http.response.pathsend"
            or (kind == "http.response.trailers" and not message.get("more_trailers"))
            or (kind == "http.response.zerocopysend" and not message.get("more_body"))
        ):
            self._end()

    def _end(self) -> None:
        self._put_numbers()
        self.span.end()

    def _put_numbers(self) -> None:
        self._name()
        self.span.set(request_bytes=self._bytes_in, response_bytes=self._bytes_out)


class _WebSocket(_Connection):
    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send, settings: Settings) -> None:
        super().__init__("WS", scope, receive, send, settings)
        self._in = self._out = 0
        self.span.set(accepted=False)

    def leave(self) -> None:
        super().leave()
        self.span.set(messages_in=self._in, messages_out=self._out)

    def _received(self, kind: str, message: Message) -> None:
        if kind == "websocket.receive":
            self._in += 1
        elif kind == "websocket.disconnect":
            self.disconnected()
            self.span.set(close_code=message.get("code", 1005))

    def _sent(self, kind: str, message: Message) -> None:
        if kind == "websocket.accept":
            self.span.set(accepted=True)
        elif kind == "websocket.send":
            self._out += 1
            self.span.first_byte()
        elif kind == "websocket.close":
            self.span.set(close_code=message.get("code", 1000))
        elif kind == "websocket.http.response.start":
            self.span.status(int(message["status"]))


_KINDS: dict[str, Callable[..., _Connection]] = {"http": _Http, "websocket": _WebSocket}


def route_of(scope: MutableMapping[str, Any]) -> str:
    """Return the template of the route that a framework has chosen; empty when it does not say, or only a part of it.

    Args:
        scope: The connection's scope, after routing.
    """
    template = scope.get("path_template")  # Litestar
    if isinstance(template, str):
        return template
    route = scope.get("route")  # Starlette and FastAPI
    root: str = scope.get("root_path", "")
    mounted = root.removeprefix(scope.get("app_root_path", root))  # where the application is mounted within another
    if route is None or type(route).__name__ == "Mount":
        return f"{mounted}/{{path}}" if mounted else ""
    # A router that is included under a prefix leaves the prefix out of its routes, in some versions.
    whole = scope.get("fastapi", {}).get("effective_route_context")
    template = getattr(whole or route, "path_format", None) or getattr(route, "path", None)
    if not isinstance(template, str):
        return ""
    pattern = getattr(whole or route, "path_regex", None)
    if isinstance(pattern, Pattern) and not pattern.match(scope["path"].removeprefix(root)):
        return ""
    return mounted + template
