"""Telemetry: what a project tells of itself, in a handful of calls, and not at all where its users do not want it.

What belongs here: those calls, and whether they do anything. What does not: how metrics are counted (metrics.py), or
which of the attributes are redacted: they are data of events, like all others.

An opt-out in the environment is the word of whoever runs the program, and wins over what its code says: DO_NOT_TRACK,
as many command-line tools read it, and STREAMLL_ENABLED.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from typing import Any, cast

from streamll.errors import ConfigurationError
from streamll.hub import hub
from streamll.models import DEBUG
from streamll.monitors.measuring.registry import Registry
from streamll.monitors.measuring.series import LONGEST_WORD, plain_number, word_of
from streamll.monitors.metrics import Metrics
from streamll.monitors.outlet import send
from streamll.options import FALSE_WORDS
from streamll.spans import MESSAGE_BOUND, capture_exception
from streamll.spans import _as_dict as as_dict
from streamll.tally import Tally

LEVELS = ("debug", "info", "warning", "error", "critical")

RESERVED = "streamll."
"""Names of events may not begin with it: those are streamll's own."""


class MetricType(Enum):
    """What kind of metric `Telemetry.track_metric` records in."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Telemetry:
    """What a project tells of itself: events, metrics, errors and messages, each with its name and version.

    Make one for a program, and keep it. No call waits, does any I/O or raises into the program, but `flush`, which waits.
    What is tracked goes where `streamll.configure` says, with the same redaction as everything. Nothing is tracked while
    it is disabled, and it cannot be enabled where the environment has DO_NOT_TRACK=1 or STREAMLL_ENABLED=0.

    Args:
        project_name: What the project is called: `telemetry.project` in the data of each event.
        version: Its version: `telemetry.version`.
        disabled: Whether to begin disabled.
        environ: The environment to read; default: that of the process.
        **options: Options of metrics, such as `interval`.

    Raises:
        ConfigurationError: When the name or the version is no string, or an option cannot be used.

    Example:
        telemetry = Telemetry("indexer", "1.4.0")
        telemetry.track_event("index_built", {"documents": 12_000})
        telemetry.track_metric("lookup_seconds", 0.012, MetricType.HISTOGRAM, {"shard": "a"})
    """

    def __init__(
        self,
        project_name: str,
        version: str,
        disabled: bool = False,
        *,
        environ: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        for what, value in (("project_name", project_name), ("version", version)):
            if type(value) is not str or not 0 < len(value) <= LONGEST_WORD:
                raise ConfigurationError(f"telemetry {what}: must be a string of 1 to {LONGEST_WORD} characters")
        self.project_name = project_name
        self.version = version
        self._identity = {"telemetry": {"project": project_name, "version": version}}
        self._opted_out_by = _opt_out(os.environ if environ is None else environ)
        self._enabled = not disabled and self._opted_out_by is None
        self._tracked = Tally()
        self._refused = Tally()
        self._metrics = Metrics(options, registry=Registry(self._identity), own_cost=False)

    @property
    def enabled(self) -> bool:
        """Whether anything is tracked."""
        return self._enabled

    def track_event(self, name: str, attrs: Mapping[str, Any] | None = None) -> bool:
        """Emit an event of this type.

        Args:
            name: Its type: 1 to 200 characters, not beginning with "streamll.".
            attrs: What else is known, by name.

        Returns:
            Whether any sink accepted it.
        """
        if not self._enabled:
            return False
        if type(name) is not str or not 0 < len(name) <= LONGEST_WORD or name.startswith(RESERVED):
            return self._refuse("name")
        return self._sent("events", send(name, self._data(attrs)))

    def track_metric(
        self,
        name: str,
        value: float,
        metric_type: MetricType | str = MetricType.COUNTER,
        attrs: Mapping[str, Any] | None = None,
    ) -> bool:
        """Record in a metric: count so much more, say what the value is now, or take a number in.

        Args:
            name: The metric's.
            value: A number: 0 or more for a counter.
            metric_type: What kind the metric is, which stays.
            attrs: Its labels: few names with few values each.

        Returns:
            Whether it was recorded.
        """
        if not self._enabled:
            return False
        kind = metric_type.value if type(metric_type) is MetricType else metric_type
        number = plain_number(value)
        if number is None or (kind == "counter" and number < 0):
            return self._refuse("value")
        labels = {label: word for label, word in as_dict(attrs).items() if type(label) is str}
        try:
            if kind == "counter":
                self._metrics.counter(name).add(number, **labels)
            elif kind == "gauge":
                self._metrics.gauge(name).set(number, **labels)
            elif kind == "histogram":
                self._metrics.histogram(name).record(number, **labels)
            else:
                return self._refuse("metric_type")
        except ConfigurationError:  # no name, or that of a metric of another kind
            return self._refuse("name")
        self._metrics.start()
        self._tracked.add("metrics")
        return True

    def track_error(self, error: BaseException | str, attrs: Mapping[str, Any] | None = None) -> bool:
        """Emit an error as an event of type "error": its type, message and stack under `error`; nothing of it is kept.

        Args:
            error: An exception, or what to say where there is none.
            attrs: What else is known, by name.

        Returns:
            Whether any sink accepted it.
        """
        if not self._enabled:
            return False
        data = self._data(attrs)
        if issubclass(type(error), BaseException):
            named = {name: value for name, value in data.items() if type(name) is str}
            return self._sent("errors", capture_exception(cast("BaseException", error), **named))
        described = {"type": "", "message": _text_of(error)}
        return self._sent("errors", send("error", {**data, "error": described}, level="error"))

    def track_log(self, message: str, level: str = "info", attrs: Mapping[str, Any] | None = None) -> bool:
        """Emit a message for people as an event of type "log", with the text under `message`.

        Args:
            message: The text, of which 2,000 characters are kept.
            level: "debug", "info", "warning", "error" or "critical", in any case; anything else counts as "info".
            attrs: What else is known, by name.

        Returns:
            Whether any sink accepted it.
        """
        if not self._enabled:
            return False
        word = word_of(level)[0].lower()
        chosen = word if word in LEVELS else "info"
        data = {**self._data(attrs), "message": _text_of(message)}
        return self._sent("logs", send("log", data, level=chosen, priority=DEBUG if chosen == "debug" else ""))

    def flush(self, timeout: float | None = 5.0) -> bool:
        """Deliver everything that was tracked before.

        Args:
            timeout: Seconds that it may take; None for what the sinks are configured for.

        Returns:
            True when it is all delivered, dead-lettered or dropped; False at the deadline.
        """
        self._metrics.flush()
        return hub.flush(timeout)

    def enable(self) -> bool:
        """Track from now on; return whether it may: an opt-out in the environment stays."""
        self._enabled = self._opted_out_by is None
        return self._enabled

    def disable(self) -> None:
        """Track nothing from now on, and forget what metrics hold that was not sent yet."""
        self._enabled = False
        self._metrics.reset()
        self._metrics.stop()

    def get_status(self) -> dict[str, Any]:
        """Return what it is and what it did, in values that JSON has.

        `tracked` counts what was accepted, by kind; `refused` what was not, by reason: `name` (no name, or taken by
        another kind of metric), `metric_type` (none that there is), `value` (no number that the metric can take), `no_sink` (nothing is configured, or no sink
        accepted it). `metrics` has the numbers of metrics themselves.
        """
        counted = self._tracked.read()
        return {
            "project_name": self.project_name,
            "version": self.version,
            "enabled": self._enabled,
            "opted_out_by": self._opted_out_by,
            "configured": hub.active,
            "tracked": {kind: counted.get(kind, 0) for kind in ("events", "metrics", "errors", "logs")},
            "refused": self._refused.read(),
            "metrics": asdict(self._metrics.stats()),
        }

    def _data(self, attrs: Any) -> dict[Any, Any]:
        return {**as_dict(attrs), **self._identity}

    def _sent(self, kind: str, event: str | None) -> bool:
        if event is None:
            return self._refuse("no_sink")
        self._tracked.add(kind)
        return True

    def _refuse(self, reason: str) -> bool:
        self._refused.add(reason)
        return False


def _opt_out(environ: Mapping[str, str]) -> str | None:
    """Return the name of the variable by which whoever runs the program has opted out."""
    if environ.get("DO_NOT_TRACK", "").strip().lower() not in ("", *FALSE_WORDS):
        return "DO_NOT_TRACK"
    if environ.get("STREAMLL_ENABLED", "").strip().lower() in FALSE_WORDS:
        return "STREAMLL_ENABLED"
    return None


def _text_of(message: Any) -> str:
    if not issubclass(type(message), str):
        return word_of(message)[0]
    text = str.__str__(message)
    return text if len(text) <= MESSAGE_BOUND else f"{text[:MESSAGE_BOUND]}..."
