"""The process's one configured set of sinks: configure(), emit(), flush(), stats(), shutdown().

What belongs here: the one place of global state, and what acts on it. What does not: how a sink works (sinks), or what
spans and monitors make (they hand their events to the hub, which this fills).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic, monotonic_ns, time_ns
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from msgspec.structs import replace

from streamll.context import SCOPE
from streamll.errors import BufferFullError, ConfigurationError
from streamll.hub import built_for, hub
from streamll.ids import new_event_id
from streamll.models import NO_TAGS, StreamllEvent
from streamll.options import FALSE_WORDS, TRUE_WORDS, BeforeSend, PipelineOptions, SinkOptions, unknown_option
from streamll.pipeline import Pipeline, PipelineStats
from streamll.runtime.executor import in_executor
from streamll.runtime.leave import call_at_leave, stop_together
from streamll.sampling import KEPT, LEFT_OUT, TAIL, Window, sampled
from streamll.spans import surroundings

if TYPE_CHECKING:
    from streamll.hub import Take
    from streamll.models import Record
    from streamll.sinks.base import Sink, SinkStats

log = logging.getLogger("streamll")

_OTHER_VARIABLES = {"STREAMLL_SINKS", "STREAMLL_ENABLED", "STREAMLL_DEBUG"}


@dataclass(frozen=True)
class Stats:
    """The numbers of the whole configuration.

    Attributes:
        sinks: Each sink's numbers, by its name.
        pipeline: What was done to events before they were handed to sinks.
        monitoring: The numbers of the tools that watch the program, by their names, with what they cost under
            "monitoring"; empty while none does.
    """

    sinks: Mapping[str, SinkStats] = field(default_factory=dict)
    pipeline: PipelineStats = field(default_factory=PipelineStats)
    monitoring: Mapping[str, Any] = field(default_factory=dict)

    @property
    def balanced(self) -> bool:
        """Whether, in every sink, each event that was offered is in exactly one counted place."""
        return all(sink.balanced for sink in self.sinks.values())

    def __str__(self) -> str:
        return "\n".join(str(sink) for sink in self.sinks.values()) or "no sink"


class Route:
    """One configuration: a pipeline, and the sinks behind it."""

    def __init__(self, pipeline: Pipeline, sinks: Sequence[Sink]) -> None:
        self.pipeline = pipeline
        self.sinks = tuple(sinks)
        encodings = {sink.content_type for sink in sinks}
        # Where one encoding serves all, and nobody is shown the event itself, it is encoded at once.
        if len(encodings) == 1 and not pipeline.shows_events and not any(sink.is_choosy for sink in sinks):
            put = self.sinks[0].handle_record if len(self.sinks) == 1 else self._put
            content_type = encodings.pop()
            self.take = pipeline.straight(content_type, put)
            if pipeline.sampling is not None:
                leave_out = self._straight_aside(content_type, put, pipeline.sampling.window)
                self.take = sampled(pipeline.sampling, self.take, leave_out, self._capture)
        else:
            self.take = built_for(self.dispatch)

    def _put(self, record: Record) -> bool:
        return _hand_on((sink, record) for sink in self.sinks)

    def dispatch(self, event: StreamllEvent) -> bool:
        """Hand an event to every sink that wants it, encoded once for each encoding; true when any accepted it.

        Raises:
            BufferFullError: A sink whose strategy is `raise_error` is full; the others have been offered the event.
        """
        try:
            prepared = self.pipeline.prepare(event)
            if prepared is None or (self.pipeline.sampling is not None and self._leaves_out(prepared)):
                return False
            return _hand_on(self._encoded(prepared))
        except BufferFullError:
            raise
        except Exception as error:  # whatever it is, the host is not to be hurt by it
            self.pipeline.note_defect(error)
            return False

    def _encoded(self, event: StreamllEvent) -> list[tuple[Sink, Record]]:
        """A prepared event for each sink that wants it, encoded once for each encoding."""
        records: dict[str, Record] = {}
        wanted: list[tuple[Sink, Record]] = []
        for sink in self.sinks:
            if not sink.wants(event):
                continue
            record = records.get(sink.content_type)
            if record is None:
                record = self.pipeline.encode(event, sink.content_type)
                records[sink.content_type] = record
            wanted.append((sink, record))
        return wanted

    def _leaves_out(self, event: StreamllEvent) -> bool:
        """Whether sampling leaves a prepared event out; it is put aside then, where there is a place for that."""
        sampling = self.pipeline.sampling
        if sampling is None:
            return False
        verdict = sampling.judge(
            event.event_type, event.event_id, event.execution_id, event.level, event.data, event.priority
        )
        if verdict is LEFT_OUT:
            window = sampling.window
            if window is not None:
                wanted = self._encoded(event)
                window.add(_hand_on_late, wanted, sum(len(record.payload) for _, record in wanted), monotonic_ns())
            return True
        if verdict is not KEPT:
            self._capture(verdict, event.event_id, event.execution_id, event.span_id, event.parent_span_id)
        return False

    def _straight_aside(self, content_type: str, put: Callable[[Record], bool], window: Window | None) -> Take | None:
        """The way of what is left out, where one encoding serves all: into the window, if there is one."""
        if window is None:
            return None

        def put_late(record: Record) -> bool:
            return put(_renewed(record))

        def put_aside(record: Record) -> bool:
            window.add(put_late, record, len(record.payload), record.created)
            return False

        return self.pipeline.straight(content_type, put_aside)

    def _capture(self, reason: str, event_id: str, execution_id: str, span_id: str, parent_span_id: str) -> None:
        """Send what was left out before an event for which that is to be known, and a word about it; never raises."""
        sampling = self.pipeline.sampling
        if sampling is None or sampling.window is None:
            return
        try:
            released, ago = sampling.window.release(monotonic_ns())
            if released:
                data = {"trigger": event_id, "reason": reason, "events": released, "seconds": ago / 1e9}
                word = StreamllEvent(
                    TAIL,
                    execution_id=execution_id,
                    span_id=span_id,
                    parent_span_id=parent_span_id,
                    level="info",
                    data=data,
                )
                _hand_on(self._encoded(word))
        except BufferFullError:
            pass  # counted by the sink; it is for what comes next to raise it
        except Exception as error:  # whatever it is, the host is not to be hurt by it
            self.pipeline.note_defect(error)


def _renewed(record: Record) -> Record:
    """A record that is offered only now: its latency and its deadline begin here."""
    return replace(record, created=monotonic_ns())


def _hand_on_late(records: Sequence[tuple[Sink, Record]]) -> bool:
    return _hand_on([(sink, _renewed(record)) for sink, record in records])


def _hand_on(records: Iterable[tuple[Sink, Record]]) -> bool:
    full: BufferFullError | None = None
    accepted = False
    for sink, record in records:
        try:
            accepted = sink.handle_record(record) or accepted
        except BufferFullError as error:
            full = error
    if full is not None:
        raise full
    return accepted


_route: Route | None = None
_configuring = threading.RLock()  # reentrant: a signal handler may call `shutdown` in the middle of `configure`
_said_unconfigured = False


def _unlock_in_child() -> None:
    global _configuring
    _configuring = threading.RLock()  # whoever held it is not in the child


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_unlock_in_child)


def configure(
    sinks: Iterable[str | Sink] | str | None = None,
    *,
    before_send: Iterable[BeforeSend] | BeforeSend = (),
    enabled: bool | None = None,
    environ: Mapping[str, str] | None = None,
    **options: Any,
) -> None:
    """Say where the process's events go. It returns at once: connections are made by the sinks' own threads.

    Called again, it builds the new sinks, sends events to them from then on, and then drains the old ones, which may take
    their stop_timeout.

    Args:
        sinks: URLs or sinks. Default: the URLs in STREAMLL_SINKS, separated by commas.
        before_send: Functions (or one) from event to event, or to None to drop it; in order, before redaction.
        enabled: False turns everything into a no-op. Default: STREAMLL_ENABLED, else true.
        environ: The environment to read; default: that of the process.
        **options: Options of the pipeline, and of every sink that is given as a URL which does not set them itself. Each
            may also be set as STREAMLL_ and its name in capitals; what is given here wins. docs/options.md lists them.

    Raises:
        ConfigurationError: When something cannot be used; nothing has changed then.
    """
    global _route
    env = os.environ if environ is None else environ
    if _is_set(env, "STREAMLL_DEBUG"):
        _log_to_stderr()
    if enabled is None:
        enabled = not env.get("STREAMLL_ENABLED") or _is_set(env, "STREAMLL_ENABLED")
    before = list(before_send) if isinstance(before_send, Iterable) else [before_send]
    for function in before:
        if not callable(function):
            raise ConfigurationError(f"before_send: must be functions, not {type(function).__name__}")
    unknown = [name for name in options if name not in (*PipelineOptions.names(), *SinkOptions.names())]
    if unknown:
        raise unknown_option("", unknown[0], {*PipelineOptions.names(), *SinkOptions.names()})
    given = {**_read_environment(env), **options}
    pipeline = Pipeline(_only(PipelineOptions, given), before, env)
    shared = _only(SinkOptions, given)  # validated even when no sink uses them
    made = _make_sinks(sinks, env, {name: given[name] for name in shared.names() if name in given}) if enabled else []
    if enabled and not made and sinks is None:
        log.warning("configure() found no sink: STREAMLL_SINKS is not set; events go nowhere")
    for sink in made:
        sink.pipeline = pipeline
    with _configuring:
        old = _route
        _route = Route(pipeline, made)
        hub.rules = pipeline.rules
        hub.is_sampled = pipeline.sampling.is_sampled if made and pipeline.sampling is not None else None
        if made:
            hub.fill(_route.dispatch, _route.take)
            hub.flush = flush
            call_at_leave(hub.give_out)
        else:
            hub.empty()
    log.debug("configured: %s", ", ".join(f"{sink.name} = {sink.destination}" for sink in made) or "no sinks")
    if old is not None:
        kept = set(made)
        left = [sink for sink in old.sinks if sink not in kept]
        stop_together({sink: sink.options.stop_timeout for sink in left})
        for sink in left:
            sink.say_what_is_lost()  # its numbers are in no `stats()` any more


def emit(
    event_type: str,
    data: Any = None,
    *,
    operation: str = "",
    level: str = "",
    priority: str = "",
    tags: list[Any] | dict[str, Any] | None = None,
    module_name: str = "",
    method_name: str = "",
) -> bool:
    """Emit an event, which belongs to the current execution and span.

    It does no I/O, never waits and never raises, unless an overflow strategy was chosen that does.

    Args:
        event_type: What kind of thing happened.
        operation: The name that a person would look for.
        data: What else is known, by name. It is read before this returns, and not changed.
        level: "debug", "info", "warning", "error" or "critical".
        priority: "critical", "normal" (the default) or "debug": under pressure debug gives way first, critical last.
        tags: Labels, as a list or a map.
        module_name, method_name: What code it is about.

    Returns:
        Whether any sink accepted it.

    Raises:
        BufferFullError: Only with `buffer_overflow_strategy="raise_error"`.
    """
    if not hub.active:
        if not _said_unconfigured:
            _say_unconfigured()
        return False
    scope = SCOPE.get()
    if scope.attributes or scope.muted or scope.instead is not None or type(data) is not dict:
        surrounding, data = surroundings(data)
        if surrounding is None:  # this is a worker's thread
            if _route is not None:
                _route.pipeline.tally.add("muted")
            return False
        scope = surrounding
    return hub.take(
        event_type,
        new_event_id(),
        scope.execution_id,
        scope.span_id,
        scope.parent_span_id,
        time_ns(),
        module_name,
        method_name,
        operation,
        level,
        data,
        NO_TAGS if tags is None else tags,
        priority,
    )


def emit_event(event: StreamllEvent) -> bool:
    """Emit an event that was built elsewhere, to every configured sink; it is not changed.

    Returns:
        Whether any sink accepted it.
    """
    from copy import copy

    return hub.active and hub.dispatch(copy(event))


def flush(timeout: float | None = None) -> bool:
    """Deliver everything emitted before this call, and what metrics have counted until then.

    Args:
        timeout: Seconds for all sinks together; default: the longest flush_timeout among them.

    Returns:
        True when it is all delivered, dead-lettered or dropped; False at the deadline.
    """
    hub.give_out()
    sinks = _route.sinks if _route is not None else ()
    if timeout is None:
        timeout = max((sink.options.flush_timeout for sink in sinks), default=0.0)
    deadline = monotonic() + timeout
    for sink in sinks:
        sink.request_flush()
    flushed = [sink.flush(max(0.0, deadline - monotonic())) for sink in sinks]
    return all(flushed)


async def aflush(timeout: float | None = None) -> bool:
    """`flush` without blocking the event loop."""
    return await in_executor(partial(flush, timeout))


def stats() -> Stats:
    """Return the numbers of every sink, and whether they balance."""
    route = _route
    monitoring = {name: read() for name, read in list(hub.sources.items())}
    if route is None:
        return Stats(monitoring=monitoring)
    return Stats({sink.name: sink.stats() for sink in route.sinks}, route.pipeline.stats(), monitoring)


def sinks() -> tuple[Sink, ...]:
    """Return the configured sinks."""
    return _route.sinks if _route is not None else ()


def shutdown(timeout: float | None = None) -> Stats:
    """Stop all sinks: deliver what there is until the deadline. Afterwards `emit` is a no-op, until `configure`.

    The interpreter's exit does the same by itself, within each sink's exit_timeout.

    Args:
        timeout: Seconds for all sinks together; default: each one's stop_timeout.

    Returns:
        The last numbers; `stats()` goes on to return them.
    """
    hub.give_out()
    with _configuring:
        hub.empty()
        route = _route
    if route is not None:
        stop_together({sink: sink.options.stop_timeout if timeout is None else timeout for sink in route.sinks})
    return stats()


async def ashutdown(timeout: float | None = None) -> Stats:
    """`shutdown` without blocking the event loop."""
    return await in_executor(partial(shutdown, timeout))


def _read_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The options that the environment sets, each of which must be right by itself, so that an error names its place."""
    found = {**PipelineOptions.from_env(env), **SinkOptions.from_env(env)}
    for name, value in found.items():
        try:
            _only(PipelineOptions if name in PipelineOptions.names() else SinkOptions, {name: value})
        except ConfigurationError as error:
            raise ConfigurationError(f"STREAMLL_{name.upper()}: {error}") from None
    known = {f"STREAMLL_{name.upper()}" for name in found} | _OTHER_VARIABLES
    for name in sorted(name for name in env if name.startswith("STREAMLL_") and name not in known):
        log.warning("%s is set, but there is no such setting; docs/options.md lists them", name)
    return found


def _only(kind: type[Any], given: Mapping[str, Any]) -> Any:
    values = {name: value for name, value in given.items() if name in kind.names()}
    for name in ("redact_keys", "keep_keys"):
        if isinstance(values.get(name), (list, tuple, set, frozenset)):
            values[name] = ",".join(values[name])
    return kind.from_mapping(values)


def _make_sinks(
    sinks: Iterable[str | Sink] | str | None, env: Mapping[str, str], shared: Mapping[str, Any]
) -> list[Sink]:
    from streamll.registry import make_sink, urls_in
    from streamll.sinks.base import Sink

    if sinks is None:
        sinks = env.get("STREAMLL_SINKS", "")
    if isinstance(sinks, str):
        sinks = urls_in(sinks)
    if isinstance(sinks, Sink) or not isinstance(sinks, Iterable):
        raise ConfigurationError('sinks: must be a list of URLs or sinks, such as ["redis://localhost:6379/0"]')
    made: list[Sink] = []
    names: set[str] = set()
    for given in sinks:
        if isinstance(given, str):
            in_url = {name for name, _ in parse_qsl(given.partition("?")[2], keep_blank_values=True)}
            sink = make_sink(given, **{name: value for name, value in shared.items() if name not in in_url})
        elif isinstance(given, Sink):
            sink = given
        else:
            raise ConfigurationError(f"sinks: must be URLs or sinks, not {type(given).__name__}")
        if sink in made:
            raise ConfigurationError(f"sinks: {sink!r} is given twice")
        base, n = sink.name, 1
        while sink.name in names:
            n += 1
            sink.name = f"{base}-{n}"
        names.add(sink.name)
        made.append(sink)
    return made


def _is_set(env: Mapping[str, str], name: str) -> bool:
    word = env.get(name, "").strip().lower()
    if word and word not in TRUE_WORDS and word not in FALSE_WORDS:
        raise ConfigurationError(f"{name}={word!r}: must be 1 or 0")
    return word in TRUE_WORDS


def _log_to_stderr() -> None:
    log.setLevel(logging.DEBUG)
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(threadName)s: %(message)s"))
        log.addHandler(handler)


def _say_unconfigured() -> None:
    global _said_unconfigured
    _said_unconfigured = True
    if _route is None and os.environ.get("STREAMLL_ENABLED", "").strip().lower() not in FALSE_WORDS:
        log.warning("emit() was called before configure(): events go nowhere until then")
