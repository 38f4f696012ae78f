"""Which metrics there are, and how they become events.

What belongs here: the registry, its bounds, and the events of type "metric". What does not: recording (instruments.py),
and the clock (metrics.py).

An event has one metric, and those of its series that have changed; more events where these are many. Its data are

    name, kind, unit, description   description where there is one; `name` is the event's operation too
    temporality                     "delta+cumulative" for counters and histograms, "last" for gauges
    end_ns                          when the interval ended: the event's timestamp
    series                          a list of rows, each with `labels`, and `start_ns`, when its interval began
      of a counter                  delta, in the interval; total, since since_ns
      of a gauge                    value, the last; min and max in the interval
      of a histogram                delta and total, how many; sum and total_sum; since_ns; p50, p95, p99 and sketch of the
                                    interval, which QuantileSketch.from_dict reads, so that intervals, labels and processes
                                    can be merged

The deltas that were accepted add up to the total: what a sink refused comes with the next event.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from time import time_ns
from typing import Any, ClassVar, TypeVar

from streamll.context import ROOT, SCOPE, current
from streamll.errors import ConfigurationError
from streamll.hub import hub
from streamll.monitors.measuring.instruments import Counter, Gauge, Histogram, Instrument
from streamll.monitors.measuring.series import GAUGE, in_parts
from streamll.monitors.outlet import send
from streamll.monitors.turn import Turn
from streamll.options import KIB, MIB, OptionSet, option
from streamll.runtime.fork import tell_after_fork
from streamll.tally import Tally

log = logging.getLogger("streamll")

AnyInstrument = TypeVar("AnyInstrument", bound=Instrument)

MOST_METRICS = 1000
"""Metrics of one registry; what is beyond is one metric for each kind."""

_LONGEST_NAME = 200
_PATIENCE = 2.0
"""Seconds to wait for another thread that is emitting."""


@dataclass(frozen=True)
class MetricsOptions(OptionSet):
    """How metrics are aggregated and sent."""

    owner: ClassVar[str] = "metrics "

    interval: float = option(10.0, "How often metrics that have changed are sent.", at_least=0.1, unit="s")
    heartbeat: float = option(
        300.0, "How often a metric that was sent and has not changed is sent again; 0: never.", at_least=0, unit="s"
    )
    max_series: int = option(
        1000, "Combinations of labels of one metric; more are counted together.", at_least=1, at_most=100_000
    )
    max_total_series: int = option(
        10_000, "Combinations of labels of all metrics together.", at_least=1, at_most=1_000_000
    )
    event_bytes: int = option(
        64 * KIB, "About how long an event with many series may be.", at_least=4 * KIB, at_most=16 * MIB, unit="bytes"
    )
    own_cost: bool = option(True, "Send what monitoring costs as the gauge streamll.overhead.")


class Registry:
    """The metrics of a program, or of a part of it.

    Args:
        attributes: What else is in the data of each event.

    Attributes:
        options: The bounds that hold.
        ns_per_call: What a recording costs, by kind of metric, where that was measured.
        tally: What was counted beside the metrics themselves.
    """

    def __init__(self, attributes: Mapping[str, Any] | None = None) -> None:
        self.attributes = dict(attributes or {})
        self.options = MetricsOptions()
        self.ns_per_call: dict[str, int] = {}
        self.tally = Tally()
        self._instruments: dict[str, Instrument] = {}
        self._made = 0
        self._emitting = Turn()
        tell_after_fork(self)

    def counter(self, name: str, unit: str = "", description: str = "") -> Counter:
        """Return the counter of this name, made now if there is none.

        Args:
            name: Up to 200 characters, such as "http.requests".
            unit: What is counted, such as "bytes".
            description: What it says, for people.

        Raises:
            ConfigurationError: When the name cannot be one, or is that of a metric of another kind.
        """
        return self._get(Counter, name, unit, description)

    def gauge(self, name: str, unit: str = "", description: str = "") -> Gauge:
        """Return the gauge of this name, made now if there is none. Arguments and errors as for `counter`."""
        return self._get(Gauge, name, unit, description)

    def histogram(self, name: str, unit: str = "", description: str = "") -> Histogram:
        """Return the histogram of this name, made now if there is none. Arguments and errors as for `counter`."""
        return self._get(Histogram, name, unit, description)

    def _get(self, kind: type[AnyInstrument], name: str, unit: str, description: str) -> AnyInstrument:
        if type(name) is not str or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
            raise ConfigurationError(f"a metric's name must be a string of 1 to {_LONGEST_NAME} printable characters")
        if type(unit) is not str or type(description) is not str:
            raise ConfigurationError(f"metric {name}: unit and description must be strings")
        found = self._instruments.get(name)
        if found is None:
            if len(self._instruments) >= MOST_METRICS:
                self.tally.add("metrics_left_out")
                name, unit, description = (
                    f"streamll.others.{kind.kind}",
                    "",
                    "Metrics beyond the most that are told apart.",
                )
            found = self._instruments.setdefault(name, kind(self, name, unit, description))
        if type(found) is not kind:
            raise ConfigurationError(f"metric {name} is a {found.kind}, and cannot be a {kind.kind} too")
        return found

    def has_room(self, series: int) -> bool:
        """Return whether a metric that has so many series may have one more, which is made then."""
        if series >= self.options.max_series or self._made >= self.options.max_total_series:
            return False
        self._made += 1
        return True

    @property
    def series(self) -> int:
        """How many combinations of labels there are."""
        return sum(instrument.series for instrument in self.instruments())

    def instruments(self) -> list[Instrument]:
        """Return all metrics, in the order in which they were made."""
        return list(self._instruments.values())

    def emit(self, heartbeat: bool = False) -> None:
        """Send what has changed; never raises. What is not accepted goes with what comes next.

        Args:
            heartbeat: Whether to send also what has not changed for long.
        """
        if not hub.active or current().muted or not self._emitting.take(_PATIENCE):
            return
        token = SCOPE.set(ROOT)  # what was counted belongs to no span
        try:
            for instrument in self.instruments():
                self._emit(instrument, round(self.options.heartbeat * 1e9) if heartbeat else 0)
        finally:
            SCOPE.reset(token)
            self._emitting.give()

    def _emit(self, instrument: Instrument, heartbeat_ns: int) -> None:
        if isinstance(instrument, Gauge):
            instrument.ask()
        now_ns = time_ns()
        changed = instrument.cut(now_ns, heartbeat_ns)
        for part in in_parts(((series, series.row(now_ns)) for series in changed), self.options.event_bytes):
            event = send(
                "metric",
                {
                    **self.attributes,
                    **_identity(instrument),
                    "temporality": "last" if instrument.kind == GAUGE else "delta+cumulative",
                    "end_ns": now_ns,
                    "series": [row for _, row in part],
                },
                timestamp=now_ns,
                operation=instrument.name,
            )
            self.tally.add("events" if event else "events_refused")
            if event:
                for series, _ in part:
                    series.settle(now_ns)
        instrument.say_what_overflowed()

    def read(self) -> list[dict[str, Any]]:
        """Return what every metric has recorded since the beginning, in values that JSON has."""
        if not self._emitting.take(_PATIENCE):
            return []
        try:
            read = [{**_identity(instrument), "series": instrument.read()} for instrument in self.instruments()]
        finally:
            self._emitting.give()
        return [metric for metric in read if metric["series"]]

    def reset(self) -> None:
        """Begin from zero: metrics and series stay, without their numbers; what was not sent is forgotten."""
        if self._emitting.take(_PATIENCE):
            try:
                for instrument in self.instruments():
                    instrument.reset()
            finally:
                self._emitting.give()

    def after_fork_in_child(self) -> None:
        """Begin from zero in a child."""
        self._emitting = Turn()
        self.tally = Tally()
        for instrument in self.instruments():
            instrument.after_fork_in_child()


def _identity(instrument: Instrument) -> dict[str, Any]:
    known = {"name": instrument.name, "kind": instrument.kind, "unit": instrument.unit}
    return {**known, "description": instrument.description} if instrument.description else known
