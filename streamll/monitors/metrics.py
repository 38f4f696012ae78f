"""Metrics: what was counted and measured in the process goes out once in an interval.

What belongs here: the tool with its turns, and the process's own registry. What does not: recording
(measuring/instruments.py), and what the events say (measuring/registry.py).

Without the tool, metrics go out when the program flushes and when it ends: nothing that was counted is lost, and no
thread is started.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from time import monotonic, thread_time_ns
from typing import TYPE_CHECKING, Any

from streamll.hub import hub
from streamll.monitors.agent import agent
from streamll.monitors.budget import METRICS
from streamll.monitors.config import read_options
from streamll.monitors.measuring.instruments import FOLD_AT, Counter, Gauge, Histogram
from streamll.monitors.measuring.registry import MetricsOptions, Registry
from streamll.monitors.measuring.series import COUNTER, GAUGE, HISTOGRAM

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Metrics", "MetricsOptions", "MetricsStats", "Registry", "counter", "gauge", "histogram", "registry"]

OVERHEAD = "streamll.overhead"

registry = Registry()
"""The process's own, which `counter`, `gauge` and `histogram` record in."""

counter = registry.counter
gauge = registry.gauge
histogram = registry.histogram

hub.holders[registry.emit] = None


@dataclass(frozen=True)
class MetricsStats:
    """The numbers of metrics themselves.

    Attributes:
        running: Whether they are sent at intervals.
        metrics: How many there are; those beyond the bound count as one of each kind.
        series: Combinations of labels.
        recorded: Recordings that were added up.
        refused: Recordings of what is no number, or none that the metric can take.
        overflowed: Calls whose labels were beyond a bound, so that they are counted together with others.
        labels_cut: Labels that were too long, or had a value that is no word, when a call's labels were new.
        metrics_left_out: Requests for metrics beyond the most that are told apart.
        lost: Recordings that found no room while another thread was adding up for very long.
        failed: Calls of watched functions that raised an error.
        events: Events that sinks accepted.
        events_refused: Events that no sink accepted; what was in them comes with the next ones.
    """

    running: bool
    metrics: int
    series: int
    recorded: int
    refused: int
    overflowed: int
    labels_cut: int
    metrics_left_out: int
    lost: int
    failed: int
    events: int
    events_refused: int


class Metrics:
    """Sends metrics at intervals.

    Args:
        config: Options by name, or MetricsOptions; None for the defaults.
        registry: Whose metrics; default: the process's own. Two tools may share one: each change is sent once.
        **options: Options by keyword, which win.

    Raises:
        ConfigurationError: When an option is unknown or its value is not allowed.

    Example:
        with Metrics(interval=5):
            streamll.counter("http.requests").add(1, route="/answer")
    """

    tool = METRICS

    def __init__(
        self,
        config: Mapping[str, Any] | MetricsOptions | None = None,
        *,
        registry: Registry | None = None,
        **options: Any,
    ) -> None:
        self.options = read_options(MetricsOptions, config, options)
        self.registry = registry if registry is not None else globals()["registry"]
        self._running = False
        self._due = 0.0

    @property
    def running(self) -> bool:
        """Whether metrics are sent at intervals."""
        return self._running

    def counter(self, name: str, unit: str = "", description: str = "") -> Counter:
        """Return the counter of this name, as `Registry.counter` does."""
        return self.registry.counter(name, unit, description)

    def gauge(self, name: str, unit: str = "", description: str = "") -> Gauge:
        """Return the gauge of this name, as `Registry.counter` does."""
        return self.registry.gauge(name, unit, description)

    def histogram(self, name: str, unit: str = "", description: str = "") -> Histogram:
        """Return the histogram of this name, as `Registry.counter` does."""
        return self.registry.histogram(name, unit, description)

    def start(self) -> Self:
        """Send metrics from now on; what was recorded before goes with the first interval. Does nothing when it runs."""
        if not self._running:
            self._running = True
            self.registry.options = self.options
            self.registry.ns_per_call = _costs()
            if self.options.own_cost:
                self.registry.gauge(OVERHEAD, "1", "The share of one processor that monitoring takes.").watch(_own_cost)
            hub.holders[self.registry.emit] = None
            self._due = monotonic() + self.options.interval
            agent.add(self, self._due)
            if not self._running:  # another thread has stopped it meanwhile
                agent.remove(self)
        return self

    def stop(self) -> None:
        """Send what was not sent yet, and no more at intervals. What was recorded stays readable; recording goes on."""
        if self._running:
            self._running = False
            agent.remove(self)
            self.registry.emit()
            if self.options.own_cost:
                self.registry.gauge(OVERHEAD).watch(None)
            if self.registry is not registry:
                hub.holders.pop(self.registry.emit, None)

    def tick(self, now: float) -> float:
        """Send what has changed, if it is time; return when it is the next time."""
        if now >= self._due:
            self.registry.emit(heartbeat=True)
            # A turn that comes late does not put off the others; those that were missed are not made up for.
            self._due += self.options.interval * (1 + (now - self._due) // self.options.interval)
        return self._due

    def flush(self) -> None:
        """Send what was not sent yet, now; to sinks, which deliver it when they do."""
        self.registry.emit()

    def reset(self) -> None:
        """Begin from zero; what was not sent yet is forgotten."""
        self.registry.reset()

    def stats(self) -> MetricsStats:
        """Return the numbers of metrics themselves."""
        counted = self.registry.tally.read()
        instruments = self.registry.instruments()
        names = ("overflowed", "labels_cut", "metrics_left_out", "lost", "failed", "events", "events_refused")
        return MetricsStats(
            running=self._running,
            metrics=len(instruments),
            series=self.registry.series,
            recorded=sum(instrument.recorded for instrument in instruments),
            refused=counted.get("refused", 0) + sum(instrument.refused for instrument in instruments),
            **{name: counted.get(name, 0) for name in names},
        )

    def report(self) -> dict[str, Any]:
        """Return what every metric has recorded since the beginning, in values that JSON has."""
        return {"metrics": self.registry.read()}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _own_cost() -> float:
    return round(agent.stats().share, 5)


@cache
def _costs() -> dict[str, int]:
    """Measure what a recording costs, by kind of metric, in nanoseconds: those on the host's threads are charged so."""
    scratch = Registry()
    calls: tuple[tuple[str, Callable[[int], None]], ...] = (
        (COUNTER, scratch.counter("c").add),
        (GAUGE, scratch.gauge("g").set),
        (HISTOGRAM, scratch.histogram("h").record),
    )
    costs: dict[str, int] = {}
    for kind, record in calls:
        for _ in range(3):
            began = thread_time_ns()
            for number in range(FOLD_AT):
                record(number)
            spent = (thread_time_ns() - began) // FOLD_AT
            costs[kind] = min(costs.get(kind, spent), spent)
    return costs
