"""The span of one request, and what both middlewares are told: what ASGI and WSGI have in common.

What belongs here: what becomes of a request's numbers, whichever way it came. What does not: the protocols (asgi.py,
wsgi.py).

Of a request only what is named here becomes part of an event: never its query, body or headers, unless they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter_ns
from types import FunctionType

from streamll.context import Block, execution
from streamll.propagation import Headers, extract
from streamll.spans import Span

_PATH_BOUND = 1000
"""Characters of a path that are kept."""

SERVER_ERROR = 500
"""From here on a status says that the server failed."""


class Settings:
    """What a middleware was told.

    Args:
        exclude: Paths of requests that get no span, such as a health check's; one that ends in "*" stands for all that
            begin so.
        headers: Names of request headers whose values go into the span's data.
        query: Whether the query string does.
        trust: Whether the execution that came in with `traceparent` is continued. Where anybody may send requests,
            anybody may choose its id.

    Raises:
        TypeError: When names are not given as a list of strings.
    """

    def __init__(self, exclude: Iterable[str], headers: Iterable[str], query: bool, trust: bool) -> None:
        paths, names = _words("exclude", exclude), _words("headers", headers)
        self._exact = frozenset(path for path in paths if not path.endswith("*"))
        self._beginnings = tuple(path[:-1] for path in paths if path.endswith("*"))
        self.headers = tuple(name.lower() for name in names)
        self.query = query
        self.trust = trust

    def excludes(self, path: str) -> bool:
        """Whether requests to a path get no span."""
        return path in self._exact or (bool(self._beginnings) and path.startswith(self._beginnings))

    def around(self, carrier: Headers | None) -> Block:
        """The execution that a request belongs to: the one that came with it, or a new one."""
        return extract(carrier) if self.trust else execution()


def _words(name: str, given: Iterable[str]) -> list[str]:
    words = [given] if isinstance(given, str) else list(given)
    if not all(isinstance(word, str) for word in words):
        raise TypeError(f"{name}: must be a list of strings")
    return words


class RequestSpan(Span):
    """The span of one request. It may end before its block does: when the response is out.

    Args:
        method: The request's method; with the route, once that is known, it is the operation.
        path: The request's path.
    """

    __slots__ = ("_level", "_method_name", "_module_name", "_status", "ended")

    def __init__(self, method: str, path: str) -> None:
        super().__init__(method, method=method, path=path[:_PATH_BOUND])
        self._level = "info"
        self._module_name = self._method_name = ""
        self.ended = False

    def route(self, template: str, endpoint: object = None) -> None:
        """Say what serves the request.

        Args:
            template: The path with names in the place of what differs from request to request; empty when unknown, since
                a path of its own for each request is no name that a person would look for.
            endpoint: The function that does.
        """
        if template:
            self._attributes["route"] = template
            self._operation = f"{self._attributes['method']} {template}"
        if isinstance(endpoint, FunctionType):
            self._module_name, self._method_name = endpoint.__module__ or "", endpoint.__qualname__

    def status(self, number: int) -> None:
        """Say what was answered; from 500 on, the span's level is "error"."""
        self._attributes["status"] = number
        if number >= SERVER_ERROR:
            self._level = "error"

    def first_byte(self) -> None:
        """The first byte of the response's body is out."""
        if self._scope is not None:  # else nothing is recorded
            self._attributes.setdefault("first_byte_ns", perf_counter_ns() - self._began)

    def end(self) -> None:
        """The response is out: what the block does from now on is not part of the span."""
        self._end(perf_counter_ns(), None)

    def _end(self, ended: int, error: BaseException | None) -> None:
        if not self.ended:
            self.ended = True
            super()._end(ended, error)
