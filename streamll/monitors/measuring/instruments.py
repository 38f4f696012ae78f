"""What users record with: counters, gauges and histograms, made by a registry.

What belongs here: recording, from any thread, signal handler or finaliser, without waiting and without losing any; and
which series a recording belongs to. What does not: the arithmetic of a series (series.py), which metrics there are
(registry.py), and when they are sent (metrics.py).

A recording is noted, in one C call that nothing can come between. Who finds many notes, and gets the lock without
waiting, adds them up. Adding at once would lose what comes between the steps of `total += amount`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any, ClassVar

from streamll.monitors.budget import METRICS, budget
from streamll.monitors.measuring.series import (
    COUNTER,
    GAUGE,
    HISTOGRAM,
    LARGEST_AMOUNT,
    LONGEST_WORD,
    MOST_LABELS,
    OVERFLOW,
    SERIES,
    HistogramSeries,
    Number,
    Series,
    plain_number,
    word_of,
)
from streamll.monitors.turn import Turn

if TYPE_CHECKING:
    from types import TracebackType

    from streamll.monitors.measuring.registry import Registry

log = logging.getLogger("streamll")

FOLD_AT = 256
"""Notes of one metric that are left to lie at most, unless somebody is adding them up."""

MOST_NOTED = 1 << 16
"""Notes that may pile up while somebody is; beyond, the oldest is lost, and counted."""

_PATIENCE = 1.0
"""Seconds to wait for another thread that is adding up."""

_OVERFLOW_KEY = (*OVERFLOW, *OVERFLOW.values())


class Instrument(ABC):
    """A metric: its name, and its series by their labels.

    Attributes:
        kind: "counter", "gauge" or "histogram".
        name, unit, description: As given to the registry.
        recorded: How many recordings were added up.
    """

    __slots__ = (
        "_folding",
        "_known",
        "_noted",
        "_plain",
        "_registry",
        "_said",
        "_series",
        "description",
        "name",
        "recorded",
        "unit",
    )

    kind: ClassVar[str]

    def __init__(self, registry: Registry, name: str, unit: str, description: str) -> None:
        self._registry = registry
        self.name, self.unit, self.description = name, unit, description
        self.recorded = 0
        self._noted: deque[Any] = deque()
        self._folding = Turn()
        self._said = False
        self._plain = SERIES[self.kind]({}, time_ns())
        # By the names of its labels and then their values, in the order of the names.
        self._series: dict[tuple[str, ...], Series] = {(): self._plain}
        # The same series in the order in which calls have named the labels.
        self._known: dict[tuple[str, ...], Series] = {}

    def _find(self, labels: dict[str, Any]) -> Series:
        """Return the series that labels belong to, which may be taken apart; never raises."""
        if len(labels) == 1:
            pair = labels.popitem()
            if type(pair[1]) is str:
                series = self._known.get(pair)
                if series is not None:
                    return series
            labels = dict((pair,))
        else:
            for value in labels.values():
                if type(value) is not str:
                    break
            else:
                series = self._known.get((*labels, *labels.values()))
                if series is not None:
                    return series
        return self._search(labels)

    def _search(self, labels: dict[str, Any]) -> Series:
        if not labels:
            return self._plain
        if len(labels) > MOST_LABELS:
            return self._beyond()
        words: dict[str, str] = {}
        as_given = True
        for name in sorted(labels):
            word, says_all = word_of(labels[name])
            if not says_all:
                self._registry.tally.add("labels_cut")
            as_given = as_given and word is labels[name]
            words[name[:LONGEST_WORD]] = word
        key = (*words, *words.values())
        series = self._series.get(key)
        if series is None:
            if not self._registry.has_room(len(self._series) - 1):
                return self._beyond()
            series = self._series.setdefault(key, SERIES[self.kind](words, time_ns()))
        if as_given and len(self._known) < 2 * self._registry.options.max_series:
            given = (*labels, *labels.values())
            self._known[given] = series
        return series

    def _beyond(self) -> Series:
        """Return the series that takes what is beyond a bound."""
        self._registry.tally.add("overflowed")
        series = self._series.get(_OVERFLOW_KEY)
        return series or self._series.setdefault(_OVERFLOW_KEY, SERIES[self.kind](OVERFLOW, time_ns()))

    def _read_amount(self, amount: Any) -> Number | None:
        """Return what is given as a number; count it as refused when it is none."""
        number = plain_number(amount)
        if number is None:
            self._registry.tally.add("refused")
        return number

    def _fold_here(self) -> None:
        """Add up what is noted, on a thread of the host's, unless somebody does it at this moment."""
        n = len(self._noted)
        if self._folding.take():
            try:
                self._fold()
            finally:
                self._folding.give()
            budget.costs.charge(METRICS, n * self._registry.ns_per_call.get(self.kind, 0))
        elif n >= MOST_NOTED:
            try:
                self._noted.popleft()
            except IndexError:  # he has just come to the end
                return
            self._registry.tally.add("lost")

    def _fold(self) -> None:
        """Add up what is noted. Whoever calls it has the turn."""
        n = len(self._noted)
        try:
            self._add_up(n)
        except IndexError:  # there were too many, and somebody has thrown some away
            pass
        self.recorded += n

    @abstractmethod
    def _add_up(self, n: int) -> None:
        """Take so many notes, and add them up."""

    def cut(self, now_ns: int, heartbeat_ns: int) -> list[Series]:
        """Set aside what was recorded until now, and return the series that have something to say."""
        if not self._folding.take(_PATIENCE):
            return []
        try:
            self._fold()
            every = list(self._series.values())
            return [series for series in every if series.cut() or series.is_due(now_ns, heartbeat_ns)]
        finally:
            self._folding.give()

    def read(self) -> list[dict[str, Any]]:
        """Return what was recorded since the beginning, a row for each series."""
        if not self._folding.take(_PATIENCE):
            return []
        try:
            self._fold()
            rows = [series.read() for series in list(self._series.values())]
        finally:
            self._folding.give()
        return [row for row in rows if row is not None]

    def reset(self) -> None:
        """Begin from zero; what was not sent is forgotten."""
        if self._folding.take(_PATIENCE):
            try:
                self._forget()
            finally:
                self._folding.give()

    def _forget(self) -> None:
        self._noted.clear()
        self.recorded = 0
        now_ns = time_ns()
        for series in list(self._series.values()):
            series.reset(now_ns)

    def after_fork_in_child(self) -> None:
        """Begin from zero in a child: what was recorded before is its parent's to send."""
        self._folding = Turn()
        self._forget()

    @property
    def refused(self) -> int:
        """How many recordings a series refused, beside those that the registry has counted."""
        return 0

    @property
    def series(self) -> int:
        """How many combinations of labels there are."""
        return len(self._series) - 1

    def say_what_overflowed(self) -> None:
        """Say once that labels are not told apart any more."""
        if not self._said and _OVERFLOW_KEY in self._series:
            self._said = True
            log.warning("metric %s has too many combinations of labels: further ones are counted together", self.name)


class Counter(Instrument):
    """Counts what only becomes more, such as requests.

    Example:
        requests = streamll.counter("http.requests")
        requests.add(1, route="/answer")
    """

    __slots__ = ()

    kind = COUNTER

    def add(self, amount: float = 1, /, **labels: Any) -> None:
        """Count so much more; never raises.

        Args:
            amount: A number from 0 to 2**63; anything else is refused, and counted as that.
            **labels: Which series it belongs to. Words; numbers, truth values and None are put into words, anything else
                is named by its type.
        """
        kind: type = type(amount)
        if kind is not int and kind is not float:
            read = self._read_amount(amount)
            if read is None:
                return
            amount = read
        series = self._find(labels) if labels else self._plain
        noted = self._noted
        noted.append((series, amount))
        if len(noted) >= FOLD_AT:
            self._fold_here()

    inc = add

    def labels(self, **labels: Any) -> BoundCounter:
        """Return this counter for one combination of labels, which is the fastest way to count."""
        return BoundCounter(self, self._find(labels))

    def _add_up(self, n: int) -> None:
        take = self._noted.popleft
        refused = 0
        for _ in range(n):
            series, amount = take()
            if 0 <= amount <= LARGEST_AMOUNT:
                series.total += amount
            else:
                refused += 1
        self._registry.tally.add("refused", refused)


class BoundCounter:
    """A counter for one combination of labels."""

    __slots__ = ("_counter", "_noted", "_series")

    def __init__(self, counter: Counter, series: Series) -> None:
        self._counter, self._series, self._noted = counter, series, counter._noted

    def add(self, amount: float = 1, /) -> None:
        """Count so much more; never raises."""
        kind: type = type(amount)
        if kind is not int and kind is not float:
            read = self._counter._read_amount(amount)
            if read is None:
                return
            amount = read
        noted = self._noted
        noted.append((self._series, amount))
        if len(noted) >= FOLD_AT:
            self._counter._fold_here()

    inc = add


class Gauge(Instrument):
    """Holds a value that goes up and down, such as the length of a queue.

    Example:
        waiting = streamll.gauge("queue.waiting")
        waiting.set(len(queue), queue="mail")
        waiting.watch(pool.size, queue="pool")
    """

    __slots__ = ("_watched",)

    kind = GAUGE

    def __init__(self, registry: Registry, name: str, unit: str, description: str) -> None:
        super().__init__(registry, name, unit, description)
        self._watched: dict[Series, Callable[[], Any]] = {}

    def set(self, value: float, /, **labels: Any) -> None:
        """Say what the value is now; never raises. What is no finite number is refused, and counted as that."""
        self._record(value, False, self._find(labels) if labels else self._plain)

    def add(self, amount: float = 1, /, **labels: Any) -> None:
        """Make the value larger, or with a negative amount smaller; it begins at 0."""
        self._record(amount, True, self._find(labels) if labels else self._plain)

    inc = add

    def watch(self, function: Callable[[], Any] | None, /, **labels: Any) -> None:
        """Ask a function for the value, each time that metrics are sent, on a thread of streamll's own.

        Args:
            function: Takes nothing, returns a number, or None for none at present. It is kept, and whatever it belongs to,
                until another takes its place; None for no longer. What it raises is counted, and said once.
            **labels: The series it is asked for.
        """
        series = self._find(labels) if labels else self._plain
        if function is None:
            self._watched.pop(series, None)
        elif callable(function):
            self._watched[series] = function
        else:
            raise TypeError("what a gauge watches is a function")

    def labels(self, **labels: Any) -> BoundGauge:
        """Return this gauge for one combination of labels."""
        return BoundGauge(self, self._find(labels))

    def ask(self) -> None:
        """Ask what is watched."""
        for series, function in list(self._watched.items()):
            try:
                value = function()
                if value is not None:
                    self._record(value, False, series)
            except Exception:  # it is the program's function; the other gauges are asked all the same
                self._registry.tally.add("failed")
                if not self._said:
                    self._said = True
                    log.warning("what gauge %s watches raised an error", self.name, exc_info=True)

    def _record(self, value: Any, adding: bool, series: Series) -> None:
        kind = type(value)
        if (kind is not int and kind is not float) or not -LARGEST_AMOUNT <= value <= LARGEST_AMOUNT:
            value = self._read_amount(value)
            if value is None:
                return
        noted = self._noted
        noted.append((series, value, adding))
        if len(noted) >= FOLD_AT:
            self._fold_here()

    def _add_up(self, n: int) -> None:
        take = self._noted.popleft
        for _ in range(n):
            series, value, adding = take()
            if not adding:
                series.set(value)
            elif not series.add(value):
                self._registry.tally.add("refused")


class BoundGauge:
    """A gauge for one combination of labels."""

    __slots__ = ("_gauge", "_series")

    def __init__(self, gauge: Gauge, series: Series) -> None:
        self._gauge, self._series = gauge, series

    def set(self, value: float, /) -> None:
        """Say what the value is now; never raises."""
        self._gauge._record(value, False, self._series)

    def add(self, amount: float = 1, /) -> None:
        """Make the value larger, or with a negative amount smaller."""
        self._gauge._record(amount, True, self._series)

    inc = add


class Histogram(Instrument):
    """Takes in numbers of which the quantiles matter, such as how long requests took.

    Example:
        took = streamll.histogram("http.duration", unit="s")
        took.record(0.25, route="/answer")
        with took.time(route="/answer"):
            answer(request)
    """

    __slots__ = ()

    kind = HISTOGRAM

    def record(self, value: float, /, **labels: Any) -> None:
        """Take a number in; never raises. What is no finite number is refused, and counted as that."""
        kind: type = type(value)
        if kind is not int and kind is not float:
            read = self._read_amount(value)
            if read is None:
                return
            value = read
        series = self._find(labels) if labels else self._plain
        noted = self._noted
        noted.append((series, value))
        if len(noted) >= FOLD_AT:
            self._fold_here()

    def time(self, **labels: Any) -> Timing:
        """Return a block whose time is taken in, in seconds, also when it raises."""
        return self.labels(**labels).time()

    @property
    def refused(self) -> int:
        """How many recordings were of no finite number."""
        return sum(series.refused for series in list(self._series.values()) if isinstance(series, HistogramSeries))

    def labels(self, **labels: Any) -> BoundHistogram:
        """Return this histogram for one combination of labels, which is the fastest way to record."""
        return BoundHistogram(self, self._find(labels))

    def _add_up(self, n: int) -> None:
        take = self._noted.popleft
        for _ in range(n):
            series, value = take()
            series.sketch.add(value)


class BoundHistogram:
    """A histogram for one combination of labels."""

    __slots__ = ("_histogram", "_noted", "_series")

    def __init__(self, histogram: Histogram, series: Series) -> None:
        self._histogram, self._series, self._noted = histogram, series, histogram._noted

    def record(self, value: float, /) -> None:
        """Take a number in; never raises."""
        kind: type = type(value)
        if kind is not int and kind is not float:
            read = self._histogram._read_amount(value)
            if read is None:
                return
            value = read
        noted = self._noted
        noted.append((self._series, value))
        if len(noted) >= FOLD_AT:
            self._histogram._fold_here()

    def time(self) -> Timing:
        """Return a block whose time is taken in, in seconds."""
        return Timing(self)


class Timing:
    """A `with` block whose time a histogram takes in, in seconds; once entered, it may be entered again when it is left."""

    __slots__ = ("_began", "_histogram")

    def __init__(self, histogram: BoundHistogram) -> None:
        self._histogram = histogram
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._histogram.record(perf_counter() - self._began)
