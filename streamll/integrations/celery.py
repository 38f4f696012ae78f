"""Celery: a span for each run of a task, in the execution of whoever sent it.

What belongs here: what Celery's signals tell. What does not: the delivery of events before a process of its pool ends,
which is seen to wherever a sink runs (runtime/hosts.py). Celery is not imported before `start`.

The execution travels in the message's headers, as W3C's `traceparent`, so that workers in other languages understand it;
a retry is a child of the run that asked for it. A task's arguments and results never become part of an event.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from streamll.context import Block, current
from streamll.hub import hub
from streamll.propagation import extract, inject
from streamll.spans import Span, describe_error, hand_over
from streamll.tally import Tally

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_OPEN = 10_000
"""Tasks that run at the same time in one process; of more, no spans are made."""


@dataclass(frozen=True)
class CeleryStats:
    """What was seen of tasks.

    Attributes:
        published: Tasks that were sent with the execution they belong to.
        spans: Runs that ended, by their state: `success`, `failure`, `retry`, and Celery's other ones.
        revoked: Tasks that were revoked.
        lost: Runs whose process was lost, or killed for taking too long: an event of type "error" each.
        open: Runs that have begun and not ended.
        refused: Runs without a span, being more than MAX_OPEN at the same time.
    """

    published: int = 0
    spans: Mapping[str, int] = field(default_factory=dict)
    revoked: int = 0
    lost: int = 0
    open: int = 0
    refused: int = 0


class _Run(Span):
    """One run of a task."""

    __slots__ = ("_block", "_level", "_method_name", "_module_name")

    def __init__(self, task: Any, task_id: str) -> None:
        request = task.request
        super().__init__(task.name, task_id=task_id, retries=request.retries or 0)
        self._level = "info"
        self._module_name = type(task).__module__
        self._method_name = type(task).__qualname__
        # An eager run belongs to whoever called it, any other one to whoever sent the message.
        headers = {name: request.get(name) for name in ("traceparent", "tracestate")}
        self._block: Block | None = None if request.is_eager else extract(headers)
        where = (request.delivery_info or {}).get("routing_key")
        if where:
            self.set(queue=where)
        if request.is_eager:
            self.set(eager=True)

    def begin(self) -> None:
        """Make it current on this thread."""
        if self._block is not None:
            self._block.__enter__()
        self.__enter__()

    def failed(self, error: BaseException) -> None:
        """It has raised; only words are kept."""
        self.set(error=describe_error(error))
        self._level = "error"

    def finish(self, state: str) -> None:
        """It has ended."""
        self.set(state=state)
        self.__exit__(None, None, None)
        if self._block is not None:
            self._block.__exit__(None, None, None)


class CeleryHook:
    """Makes a span of each run of a task, in the worker; and sends the execution along, wherever tasks are sent from.

    A span's operation is the task's name. Its data has `task_id`, `queue`, `retries`, `state` ("success", "failure",
    "retry", ...), `duration_ns`, `error` (with the level "error") when the task raised, `retry` (why) when it is to be
    tried again, and `eager` when no worker was involved. A task that is revoked is an event: event_type "task_revoked".

    Start it where tasks are sent and where the worker is set up: in the module that makes the Celery application.
    """

    def __init__(self) -> None:
        self._running = False
        self._open: dict[tuple[int, str], _Run] = {}
        self._tally = Tally()

    @property
    def running(self) -> bool:
        """Whether tasks are seen."""
        return self._running

    def start(self) -> Self:
        """See tasks from now on, until `stop`; also when nobody holds this object any more.

        Raises:
            ImportError: When there is no Celery.
        """
        if not self._running:
            from celery import signals

            self._running = True
            for name, receiver in self._receivers().items():
                getattr(signals, name).connect(receiver, weak=False, dispatch_uid=f"streamll-{id(self)}")
        return self

    def stop(self) -> None:
        """See no more of them."""
        if self._running:
            from celery import signals

            self._running = False
            for name, receiver in self._receivers().items():
                getattr(signals, name).disconnect(receiver, dispatch_uid=f"streamll-{id(self)}")

    def stats(self) -> CeleryStats:
        """Return what was seen."""
        counts = self._tally.read()
        published, revoked, lost, refused = (
            counts.pop(name, 0) for name in ("published", "revoked", "lost", "refused")
        )
        return CeleryStats(published, counts, revoked, lost, len(self._open), refused)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def _receivers(self) -> dict[str, Callable[..., None]]:
        return {
            "before_task_publish": self._publish,
            "task_prerun": self._begin,
            "task_postrun": self._end,
            "task_failure": self._fail,
            "task_retry": self._retry,
            "task_revoked": self._revoke,
        }

    def _publish(self, headers: Any = None, **_: object) -> None:
        if hub.active and isinstance(headers, dict):
            inject(headers)
            self._tally.add("published")

    def _begin(self, task_id: str, task: Any, **_: object) -> None:
        if not hub.active:
            return
        if len(self._open) >= MAX_OPEN:
            self._tally.add("refused")
            return
        run = _Run(task, task_id)
        self._open[threading.get_ident(), task_id] = run
        run.begin()

    def _end(self, task_id: str, state: str | None = None, **_: object) -> None:
        run = self._open.pop((threading.get_ident(), task_id), None)
        if run is not None:
            word = (state or "unknown").lower()
            run.finish(word)
            self._tally.add(word)

    def _fail(self, task_id: str, exception: BaseException, sender: Any = None, **_: object) -> None:
        run = self._open.get((threading.get_ident(), task_id))
        if run is not None:
            run.failed(exception)
        elif hub.active:  # its process was lost, and the main one says so
            self._tally.add("lost")
            data = {"task_id": task_id, "error": describe_error(exception)}
            hand_over(current(), "error", data, operation=getattr(sender, "name", ""), level="error")

    def _retry(self, request: Any, reason: object, **_: object) -> None:
        run = self._open.get((threading.get_ident(), request.id))
        if run is not None:
            cause = getattr(reason, "exc", None)
            run.set(retry=describe_error(cause) if isinstance(cause, BaseException) else True)

    def _revoke(self, request: Any, terminated: bool, expired: bool, **_: object) -> None:
        if not hub.active:
            return
        self._tally.add("revoked")
        with extract({name: request.get(name) for name in ("traceparent", "tracestate")}):
            data = {"task_id": request.id, "terminated": bool(terminated), "expired": bool(expired)}
            hand_over(current(), "task_revoked", data, operation=request.task, level="warning")


def instrument_celery() -> CeleryHook:
    """Make a span of each run of a task from now on, and send executions along with tasks.

    Returns:
        What undoes it: call its `stop()`, or use it as a context manager.

    Raises:
        ImportError: When there is no Celery.

    Example:
        app = Celery("shop", broker="amqp://localhost")
        streamll.configure(sinks=["redis://localhost:6379/0"])
        instrument_celery()
    """
    return CeleryHook().start()
