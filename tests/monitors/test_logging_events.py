"""The program's log and warnings as events, and all that must stay as it was: its own handlers, settings and errors."""

from __future__ import annotations

import logging
import logging.config
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamll
from streamll.context import muted
from streamll.errors import ConfigurationError
from streamll.hub import hub
from streamll.models import StreamllEvent
from streamll.monitors.hooks import Hook
from streamll.monitors.logging_events import LoggingCapture, LoggingHandler, capture_logging, level_word
from streamll.monitors.rate import RateBound
from streamll.monitors.warning_events import WarningsCapture, capture_warnings
from tests.fixtures.redis import RedisEndpoint

log = logging.getLogger("shop.orders")

alone = logging.Logger("shop.alone")  # noqa: LOG001  # pytest's handlers, which fail where an argument does, find others
alone.addHandler(logging.NullHandler())


@pytest.fixture(autouse=True)
def a_logger_that_lets_all_pass() -> Iterator[None]:
    log.setLevel(logging.DEBUG)
    yield
    log.setLevel(logging.NOTSET)


class Hostile:
    """An argument whose text is made by code that fails, or that logs itself."""

    def __init__(self, logs: bool = False) -> None:
        self.logs = logs

    def __str__(self) -> str:
        if self.logs:
            alone.warning("made by %s", self)
            return "text"
        raise ZeroDivisionError


class TestRecords:
    def test_become_events_with_all_that_is_known_of_them(self, events: list[StreamllEvent]) -> None:
        with capture_logging("INFO") as capture, streamll.execution() as execution_id, streamll.span("sell") as span:
            try:
                raise LookupError("nothing of it left")
            except LookupError:
                log.exception("order %d of %s", 42, "tea", extra={"user": 7, "password": "hunter2"}, stack_info=True)
        event = events[0]
        data = event.data
        assert (event.event_type, event.level, event.operation) == ("log", "error", "shop.orders")
        assert (event.module_name, event.method_name) == (
            "shop.orders",
            self.test_become_events_with_all_that_is_known_of_them.__name__,
        )
        assert (event.execution_id, event.span_id) == (execution_id, span.span_id)
        assert abs(event.timestamp - time.time_ns()) < 60e9
        assert data["message"] == "order 42 of tea"
        assert data["template"] == "order %d of %s"
        assert data["extra"] == {"user": 7, "password": "hunter2"}
        assert (data["path"], data["thread"]) == (__file__, threading.current_thread().name)
        assert data["error"]["type"] == "LookupError"
        assert data["error"]["message"] == "nothing of it left"
        assert data["error"]["stack"][-1].startswith(f"{__file__}:")
        assert data["stack"].startswith("Stack (most recent call last):")
        assert capture.stats().events == 1
        assert [one.event_type for one in events] == ["log", "span"]

    @pytest.mark.parametrize(
        ("number", "word"),
        [
            (10, "debug"),
            (19, "debug"),
            (20, "info"),
            (25, "info"),
            (35, "warning"),
            (40, "error"),
            (99, "critical"),
        ],
    )
    def test_of_any_level_have_a_usual_one(self, number: int, word: str, events: list[StreamllEvent]) -> None:
        with capture_logging(0):
            log.log(number, "x")
        assert (level_word(number), events[0].level) == (word, word)
        assert events[0].priority == ("debug" if word == "debug" else "")
        assert ("level_name" in events[0].data) == (number % 10 != 0)

    def test_below_the_level_or_elsewhere_become_none(self, events: list[StreamllEvent]) -> None:
        with capture_logging("WARNING", "shop"):
            log.info("too little")
            logging.getLogger("shopping").error("elsewhere")
            logging.getLogger("shop").error("here")
            log.error("below")
        assert [event.data["message"] for event in events] == ["here", "below"]

    def test_are_not_even_formatted_where_no_event_comes_of_them(self, events: list[StreamllEvent]) -> None:
        with capture_logging(0) as capture:
            hub.empty()
            alone.error("%s", Hostile())
        assert capture.stats().events == capture.stats().unformatted == 0

    def test_that_cannot_be_formatted_keep_their_template(self, events: list[StreamllEvent]) -> None:
        with capture_logging() as capture:
            alone.warning("%s", Hostile())
            alone.warning(Hostile())
            alone.warning("%d %d", "one")
        assert [event.data["message"] for event in events] == ["%s", "<Hostile>", "%d %d"]
        assert capture.stats().unformatted == 3

    def test_from_elsewhere_may_hold_anything(self, events: list[StreamllEvent]) -> None:
        odd: list[dict[str, Any]] = [
            {"levelno": "high"},
            {"name": 5},
            {"created": None},
            {"levelname": []},
            {"exc_info": (1,)},
        ]
        handler = LoggingHandler()
        for values in odd:
            handler.handle(logging.makeLogRecord({"levelno": 30, "levelname": "WARNING", "msg": "x", **values}))
        handler.handle(logging.makeLogRecord({"levelno": 40, "msg": "x", "exc_text": "Traceback: ..."}))
        assert handler.stats().events + sum(handler.stats().left_out.values()) == len(odd) + 1
        assert handler.stats().left_out == {"failed": 2}
        assert events[-1].data["error"] == {"message": "Traceback: ..."}

    def test_are_kept_within_bounds(self, events: list[StreamllEvent]) -> None:
        with capture_logging(max_message=10, max_extra=2) as capture:
            log.warning("x" * 100, extra={f"k{n}": n for n in range(5)})
        assert events[0].data["message"] == "x" * 10 + "..."
        assert events[0].data["extra"] == {"k0": 0, "k1": 1}
        assert capture.stats().cut == 2

    def test_made_while_an_event_is_made_have_no_end_and_are_left_out(self, events: list[StreamllEvent]) -> None:
        with capture_logging() as capture:
            alone.warning("%s", Hostile(logs=True))
        assert [event.data["message"] for event in events] == ["text"]
        assert capture.stats().left_out == {"reentrant": 1}

    def test_of_our_own_and_of_muted_threads_are_left_out(self, events: list[StreamllEvent]) -> None:
        with capture_logging() as capture:
            logging.getLogger("streamll.any").error("x")
            with muted():
                log.error("y")
        assert events == []
        assert capture.stats().left_out == {"own": 1, "muted": 1}

    def test_become_one_event_wherever_they_are_seen(self, events: list[StreamllEvent]) -> None:
        handler = LoggingHandler("INFO")
        log.addHandler(handler)
        try:
            with capture_logging() as first, capture_logging("ERROR") as second:
                log.error("x")
                log.error("x")
                log.info("z")
        finally:
            log.removeHandler(handler)
        assert [event.data["message"] for event in events] == ["x", "x", "z"]
        assert first.stats().events == 3
        assert second.stats().left_out == {"twice": 2}
        assert handler.stats().left_out == {"twice": 3}

    def test_from_many_threads_are_all_counted(self, events: list[StreamllEvent]) -> None:
        def many() -> None:
            for n in range(200):
                log.info("n %d", n)

        with capture_logging() as capture:
            threads = [threading.Thread(target=many) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(events) == capture.stats().events == 1600


class TestTheHostsLogging:
    def test_is_printed_configured_and_propagated_as_before(
        self, events: list[StreamllEvent], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logging.root, "handlers", [])
        untouched = logging.Logger.callHandlers
        with capture_logging():
            log.warning("by the last resort")
            logging.basicConfig(format="configured: %(message)s")
            log.warning("by a handler")
        assert capsys.readouterr().err == "by the last resort\nconfigured: by a handler\n"
        assert logging.Logger.callHandlers is untouched
        assert len(events) == 2

    def test_may_configure_the_handler_itself(self, events: list[StreamllEvent]) -> None:
        handler = {"class": "streamll.monitors.logging_events.LoggingHandler", "level": "INFO", "max_message": 3}
        try:
            logging.config.dictConfig(
                {
                    "version": 1,
                    "disable_existing_loggers": False,
                    "handlers": {"events": handler},
                    "loggers": {"shop.orders": {"handlers": ["events"], "level": "DEBUG"}},
                }
            )
            log.info("message")
            log.debug("message")
        finally:
            log.handlers.clear()
        assert [event.data["message"] for event in events] == ["mes..."]

    def test_filters_decide_also_by_failing_or_replacing(self, events: list[StreamllEvent]) -> None:
        handler = LoggingHandler()
        record = logging.makeLogRecord({"msg": "x", "levelno": 30, "levelname": "WARNING", "name": "shop"})
        handler.addFilter(lambda record: record.msg != "secret")
        handler.handle(record)
        handler.handle(logging.makeLogRecord({"msg": "secret"}))
        handler.addFilter(lambda record: 1 // 0 > 0)
        handler.handle(record)
        assert [event.data["message"] for event in events] == ["x"]
        assert handler.stats().left_out == {"filtered": 2}

    def test_goes_on_after_somebody_else_came_between(
        self, events: list[StreamllEvent], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        untouched = logging.Logger.callHandlers
        capture = capture_logging()
        ours = logging.Logger.callHandlers
        others: list[str] = []

        def other(logger: logging.Logger, record: logging.LogRecord) -> None:
            others.append(record.getMessage())
            ours(logger, record)

        try:
            logging.Logger.callHandlers = other  # type: ignore[method-assign, assignment]  # as such tools do it
            log.error("both")
            capture.stop()
            log.error("the other")
            capture.start()
            log.error("both again")
            capture.stop()
            assert logging.Logger.callHandlers is other
        finally:
            logging.Logger.callHandlers = untouched  # type: ignore[method-assign]
        assert [event.data["message"] for event in events] == ["both", "both again"]
        assert others == ["both", "the other", "both again"]

    @pytest.mark.parametrize("options", [{"level": "LOUD"}, {"max_extra": -1}, {"bound": 1}])
    def test_refuses_options_when_it_is_set_up(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match="logging"):
            LoggingCapture(options)

    def test_reports_numbers(self, events: list[StreamllEvent]) -> None:
        with capture_logging() as capture:
            assert capture.running
            log.error("x")
        assert capture.report() == {"events": 1, "left_out": {}, "unformatted": 0, "cut": 0}
        capture.reset()
        assert capture.stats().events == 0


@pytest.mark.redis
@pytest.mark.integration
def test_everything_that_is_logged_on_the_way_to_a_real_server_has_an_end(redis_server: RedisEndpoint) -> None:
    """Root at DEBUG, the clients' loggers too: each event would make the next, if records of workers became events."""
    root = logging.getLogger()
    level, key = root.level, "streamll-test:logging-has-an-end"
    root.setLevel(logging.DEBUG)
    try:
        with capture_logging("DEBUG"):
            streamll.configure(sinks=[f"{redis_server.url}?stream={key}&flush_interval=0.001"])
            for n in range(50):
                log.debug("n %d", n)
                streamll.flush()
            numbers = streamll.shutdown()
    finally:
        root.setLevel(level)
    with redis_server.client() as client:
        stored = client.xlen(key)
        for name in client.scan_iter(match=f"{key}*"):
            client.delete(name)
    sink = next(iter(numbers.sinks.values()))
    assert numbers.balanced
    assert 50 <= sink.delivered <= 60  # what the host's own thread may log on the way is no worker's
    assert stored >= sink.delivered


class TestWarnings:
    def test_become_events_and_are_shown_as_before(self, events: list[StreamllEvent]) -> None:
        before = warnings.showwarning
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            shown: list[tuple[Any, ...]] = []
            warnings.showwarning = lambda *args: shown.append(args)
            with capture_warnings() as capture:
                warnings.warn("old", DeprecationWarning, stacklevel=1)
            warnings.warn("not seen", UserWarning, stacklevel=1)
        event = events[0]
        assert (event.event_type, event.level, event.operation) == ("warning", "warning", "DeprecationWarning")
        assert (event.data["message"], event.data["path"]) == ("old", __file__)
        assert [str(args[0]) for args in shown] == ["old", "not seen"]
        assert (capture.stats().events, len(events)) == (1, 1)
        assert warnings.showwarning is before

    def test_that_the_host_has_logged_are_one_event(self, events: list[StreamllEvent]) -> None:
        records: list[logging.LogRecord] = []
        logger = logging.getLogger("py.warnings")

        def keep(record: logging.LogRecord) -> bool:
            records.append(record)
            return True

        logger.addFilter(keep)
        with warnings.catch_warnings(), capture_logging() as logged:
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            try:
                warnings.warn("logged only", UserWarning, stacklevel=1)
                with capture_warnings():
                    warnings.warn("both", UserWarning, stacklevel=1)
                warnings.warn("logged again", UserWarning, stacklevel=1)
            finally:
                logging.captureWarnings(False)
                logger.filters.clear()
                logger.handlers.clear()
        assert [event.event_type for event in events] == ["log", "warning", "log"]
        assert logged.stats().left_out == {"twice": 1}
        assert len(records) == 3

    def test_are_bounded_in_number_and_never_hurt(self, events: list[StreamllEvent]) -> None:
        with warnings.catch_warnings():
            warnings.showwarning = lambda *args, **named: None
            with WarningsCapture({"per_minute": 3}) as capture:
                show: Any = warnings.showwarning
                for n in range(5):
                    show(UserWarning(n), UserWarning, "a.py", n)
                capture.reset()
                show("text", UserWarning, "a.py", 1, file=None, line="x")
                with muted():
                    show("text", UserWarning, "a.py", 1)
        assert capture.report() == {"events": 1, "left_out": {"muted": 1}}
        assert len(events) == 4


class TestHook:
    def test_passes_arguments_results_and_errors_through(self) -> None:
        class Holder:
            value = staticmethod(divmod)

        seen: list[tuple[Any, ...]] = []
        hook = Hook(Holder, "value")

        def see(*args: Any) -> None:
            seen.append(args)

        hook.add(see)
        hook.add(see)
        assert Holder.value(7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            Holder.value(1, 0)
        hook.remove(see)
        hook.remove(see)
        assert seen == [(7, 2), (1, 0)]
        assert Holder.value is divmod


@given(st.integers(1, 5), st.lists(st.floats(0, 50), max_size=60))
def test_a_rate_lets_through_so_many_in_any_window_of_its_own(per_minute: int, gaps: list[float]) -> None:
    rate, now, told = RateBound(per_minute), 0.0, []
    for gap in gaps:
        now += gap
        if rate.allows(now):
            told.append(now)
    for began in told:
        assert sum(began <= one < began + 60 for one in told) <= 2 * per_minute
    assert len(told) >= min(len(gaps), per_minute)
