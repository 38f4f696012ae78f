"""Sampling: which events are sent, and which are only sent if something goes wrong soon after.

What belongs here: the decision about an execution, the window of events that were left out, and what opens it. What does
not: where they are sent (api.py), and how the decision travels to other processes (propagation.py).

Executions are kept or left out as a whole, by every process alike, as in consistent probability sampling (OpenTelemetry,
"TraceState: Probability Sampling", and W3C Trace Context level 2): the last 56 bits of a trace id are a random number R,
and at a rate p it is kept when R >= (1 - p) 2^56. So what a process keeps at a rate, one with a higher rate keeps too. What
another process has decided, and said in the headers that `extract` has read, holds here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache
from threading import Lock
from time import monotonic_ns
from typing import Any

from streamll.context import SCOPE, current
from streamll.hub import Take
from streamll.models import CRITICAL
from streamll.options import PipelineOptions
from streamll.tally import Tally

_RANDOM_BITS = 56
_RANDOM_DIGITS = _RANDOM_BITS // 4
_SAMPLED = 0x01

TAIL = "streamll.tail"
"""The event type of the word that a window was sent: it comes behind the window and before what opened it. Its `data` has
trigger (that event's id), reason, events (how many the window had) and seconds (how long ago the first of them was)."""

LEFT_OUT, KEPT = "", "kept"
FAILED, SLOW, ALERT, URGENT = "failed", "slow", "alert", "critical"
"""Verdicts about an event: the last four are why it opens the window; such an event is always kept."""

REMEMBERED = 4096
"""Executions of which something is remembered beyond what their ids say, at most."""

_BAD = frozenset({"error", "critical"})
_SUMS = frozenset({"metric", "memory", "profile"})
"""Event types that already stand for many: without some of them the others would say something else."""

_FOLD_AT = 64
_LARGE = 4096
_BESIDE = 256
"""About the bytes that a left-out event takes beside its payload."""


def threshold_of(rate: float) -> int:
    """Return what an execution's randomness must reach at a rate from 0 to 1: all at 1, none at 0."""
    return round((1.0 - rate) * (1 << _RANDOM_BITS))


def randomness_of(text: str) -> int:
    """Return the random number of an id, from 0 to 2^56 - 1: the last 56 bits of a trace id, any other id's hash."""
    if len(text) == 32 and text.isalnum():
        try:
            return int(text[-_RANDOM_DIGITS:], 16)
        except ValueError:
            pass  # it is as long as one, and none
    return _hash_of(text)


def _hash_of(text: str) -> int:
    digest = _blake2b()(text.encode("utf-8", "surrogatepass"), digest_size=_RANDOM_BITS // 8).digest()
    return int.from_bytes(digest, "big")


@cache
def _blake2b() -> Callable[..., Any]:
    import hashlib  # takes milliseconds

    return hashlib.blake2b


class Window:
    """The last events that were left out, within bounds on their number, size and age.

    It takes no lock that anybody waits for: adding and releasing may happen in the middle of each other, in any thread.
    Each event leaves it once: released, or expired.

    Args:
        most: Events held at most; some more for a moment.
        most_bytes: Bytes of them.
        seconds: How long.

    Attributes:
        tally: How many were `released`, and how many `expired`.
    """

    def __init__(self, most: int, most_bytes: int, seconds: float) -> None:
        self._most, self._most_bytes, self._age = most, most_bytes, int(seconds * 1e9)
        self.become_new()

    def become_new(self) -> None:
        """Forget all of it."""
        self._held: deque[tuple[int, int, Callable[[Any], bool], Any]] = deque()
        self._sizes: deque[int] = deque()
        self._size = 0
        self._folding = Lock()
        self.tally = Tally()

    def __len__(self) -> int:
        return len(self._held)

    def add(self, send: Callable[[Any], bool], thing: Any, size: int, now: int) -> None:
        """Hold something, and how it is sent: `send(thing)`. `now` is in monotonic nanoseconds."""
        self._held.append((now, size + _BESIDE, send, thing))
        self._sizes.append(size + _BESIDE)
        if len(self._sizes) >= _FOLD_AT or size > _LARGE:
            self.tidy(now)

    def release(self, now: int) -> tuple[int, int]:
        """Send what is held, in order, until something is not taken: the rest is held on.

        Returns:
            How many were sent, and how many nanoseconds ago the first of them came.
        """
        released = ago = 0
        try:
            for _ in range(len(self._held)):
                came, size, send, thing = self._held.popleft()
                self._sizes.append(-size)
                if now - came > self._age:
                    self.tally.add("expired")
                    continue
                released += 1
                ago = ago or now - came
                if not send(thing):
                    break
        except IndexError:
            pass  # another thread lets them out, too
        finally:
            self.tally.add("released", released)
        return released, ago

    def tidy(self, now: int) -> None:
        """Let go of what is beyond the bounds, unless somebody is at it."""
        if not self._folding.acquire(blocking=False):
            return
        try:
            held, sizes = self._held, self._sizes
            while sizes:
                self._size += sizes.popleft()
            while held and (len(held) > self._most or self._size > self._most_bytes or now - held[0][0] > self._age):
                self._size -= held.popleft()[1]
                self.tally.add("expired")
        except IndexError:
            pass  # another thread has let them out meanwhile
        finally:
            self._folding.release()


class Sampling:
    """Decides about events, from any thread, and holds what was left out.

    Args:
        options: `sample_rate`, and the options whose names begin with `tail_`.

    Attributes:
        window: For what is left out; None when that is gone for good.
    """

    def __init__(self, options: PipelineOptions) -> None:
        _blake2b()  # no event is to wait for its import
        self._threshold = threshold_of(options.sample_rate)
        self._slow = None if options.tail_slow is None else int(options.tail_slow * 1e9)
        self._alerts = frozenset(name.strip() for name in options.tail_types.split(",") if name.strip())
        self.window: Window | None = None
        if options.tail_events:
            self.window = Window(options.tail_events, options.tail_bytes, options.tail_seconds)
        self.become_new()

    @classmethod
    def wanted(cls, options: PipelineOptions) -> Sampling | None:
        """Return what decides; None where everything is kept."""
        return cls(options) if options.sample_rate < 1.0 else None

    def become_new(self) -> None:
        """Begin anew in a forked child: what was left out before is the parent's."""
        self.tally = Tally()
        # Where an id does not say it: others have decided, or something went wrong. The oldest give way.
        self._known: dict[str, bool] = {}
        # So that not each event of an execution asks anew; it may be emptied at any time.
        self._verdicts: dict[str, bool] = {}
        if self.window is not None:
            self.window.become_new()

    def counts(self) -> dict[str, int]:
        """Return how many events were left out, and what became of them since."""
        counts = self.tally.read()
        window = self.window
        if window is not None:
            window.tidy(monotonic_ns())
            of_window = window.tally.read()
            counts |= {
                "tail_captured": of_window.get("released", 0),
                "tail_expired": of_window.get("expired", 0),
                "tail_held": len(window),
            }
        return counts

    def is_sampled(self, execution_id: str, trace_flags: str) -> bool:
        """Return whether an execution's events are kept.

        Args:
            execution_id: The execution.
            trace_flags: The W3C flags that came with it; empty when it began here.
        """
        known = self._known.get(execution_id)
        if known is not None:
            return known
        own = randomness_of(execution_id) >= self._threshold
        if trace_flags:
            theirs = bool(int(trace_flags, 16) & _SAMPLED)
            if theirs != own:
                self._remember(execution_id, theirs)
            return theirs
        return own

    def judge(self, event_type: Any, event_id: Any, execution_id: Any, level: Any, data: Any, priority: Any) -> str:
        """Return what is done with an event, by its fields, which may be of any type: one of the verdicts.

        An event that opens the window has all that follows of its execution kept.
        """
        verdict = self._reason(event_type, level, data, priority)
        is_within = type(execution_id) is str and execution_id
        if verdict:
            if self.window is not None and is_within:
                self._remember(execution_id, True)
            return verdict
        if is_within:
            keeps = self._verdicts.get(execution_id)
            if keeps is None:
                keeps = self._decide(execution_id)
        else:
            keeps = type(event_id) is not str or _hash_of(event_id) >= self._threshold
        if keeps or (type(event_type) is str and (event_type in _SUMS or event_type.startswith("streamll."))):
            return KEPT
        self.tally.add("sampled_out")
        return LEFT_OUT

    def _decide(self, execution_id: str) -> bool:
        scope = SCOPE.get()
        if scope.instead is not None:
            scope = current()
        keeps = self.is_sampled(execution_id, scope.trace_flags if scope.execution_id == execution_id else "")
        if len(self._verdicts) >= REMEMBERED:
            self._verdicts.clear()
        self._verdicts[execution_id] = keeps
        if self._known.get(execution_id, keeps) != keeps:  # something went wrong meanwhile, in another thread
            self._verdicts.pop(execution_id, None)
        return keeps

    def _reason(self, event_type: Any, level: Any, data: Any, priority: Any) -> str:
        if type(level) is str and level in _BAD:
            return FAILED
        if type(priority) is str and priority == CRITICAL:
            return URGENT
        if type(event_type) is str:
            if event_type == "span":
                if self._slow is not None and type(data) is dict:
                    took = data.get("duration_ns")
                    if type(took) is int and took >= self._slow:
                        return SLOW
            elif event_type in self._alerts or event_type.endswith("_alert"):
                return ALERT
        return ""

    def _remember(self, execution_id: str, keeps: bool) -> None:
        known = self._known
        known[execution_id] = keeps
        self._verdicts.pop(execution_id, None)
        if len(known) > REMEMBERED:
            try:
                known.pop(next(iter(known)), None)
            except (RuntimeError, StopIteration):
                pass  # another thread is at it


Capture = Callable[[str, str, str, str, str], None]
"""Opens the window: the reason, and the trigger's event id, execution, span and parent span."""


def sampled(sampling: Sampling, take: Take, leave_out: Take | None, capture: Capture) -> Take:
    """Return a way for events, as `Hub.take`, that only what is kept goes.

    Args:
        sampling: Decides.
        take: The way of what is kept.
        leave_out: The way of what is left out; None when it is gone for good.
        capture: Is called before what opens the window.
    """
    judge = sampling.judge

    def sampled_take(
        event_type: str,
        event_id: str,
        execution_id: str,
        span_id: str,
        parent_span_id: str,
        timestamp: int,
        module_name: str,
        method_name: str,
        operation: str,
        level: str,
        data: dict[Any, Any],
        tags: Any,
        priority: str,
    ) -> bool:
        verdict = judge(event_type, event_id, execution_id, level, data, priority)
        way = take
        if verdict is LEFT_OUT:
            if leave_out is None:
                return False
            way = leave_out
        elif verdict is not KEPT:
            capture(verdict, event_id, execution_id, span_id, parent_span_id)
        return way(
            event_type,
            event_id,
            execution_id,
            span_id,
            parent_span_id,
            timestamp,
            module_name,
            method_name,
            operation,
            level,
            data,
            tags,
            priority,
        )

    return sampled_take
