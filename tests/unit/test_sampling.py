"""Sampling: what is kept, what is held, and what has it sent after all."""

from __future__ import annotations

from itertools import count
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streamll.context import execution
from streamll.hub import hub
from streamll.ids import new_event_id, new_execution_id
from streamll.options import PipelineOptions
from streamll.propagation import extract, inject
from streamll.sampling import (
    ALERT,
    FAILED,
    KEPT,
    LEFT_OUT,
    REMEMBERED,
    SLOW,
    URGENT,
    Sampling,
    Window,
    randomness_of,
    threshold_of,
)
from tests.unit.here import the_same_hub_afterwards
from tests.unit.hostile import armed, hostile_class

rates = st.floats(0, 1)
trace_ids = st.integers(1, 2**128 - 1).map(lambda number: f"{number:032x}")
SECOND = 10**9


def sampling(rate: float = 0.0, **options: Any) -> Sampling:
    return Sampling(PipelineOptions(sample_rate=rate, **options))


def judged(decider: Sampling, execution_id: Any = "", event_type: Any = "noted", **fields: Any) -> str:
    return decider.judge(
        event_type,
        fields.get("event_id", new_event_id()),
        execution_id,
        fields.get("level", ""),
        fields.get("data", {}),
        fields.get("priority", ""),
    )


class TestDecision:
    @given(trace_ids, rates, rates)
    def test_what_is_kept_at_a_rate_is_kept_at_a_higher_one(self, trace_id: str, one: float, other: float) -> None:
        low, high = sorted((one, other))
        assert sampling(high).is_sampled(trace_id, "") or not sampling(low).is_sampled(trace_id, "")
        assert not sampling(0).is_sampled(trace_id, "")

    @given(trace_ids)
    def test_the_last_56_bits_of_a_trace_id_are_its_random_number(self, trace_id: str) -> None:
        assert randomness_of(trace_id) == int(trace_id, 16) % 2**56
        assert (randomness_of(trace_id) >= threshold_of(0.25)) == (int(trace_id[-14:], 16) >= 0.75 * 2**56)

    @given(st.text())
    def test_any_id_has_one_that_stays(self, text: str) -> None:
        assert 0 <= randomness_of(text) == randomness_of(text) < 2**56

    def test_of_many_the_share_is_kept_whatever_ids_they_have(self) -> None:
        numbers = count()
        for make in (new_execution_id, new_event_id, lambda: f"order-{next(numbers)}"):
            decider = sampling(0.1)
            many = [make() for _ in range(4000)]
            if make is new_event_id:
                kept = sum(judged(decider, event_id=one) == KEPT for one in many)
            else:
                kept = sum(judged(decider, one) == KEPT for one in many)
            assert 300 < kept < 500  # 400 plus or minus five standard deviations
            assert decider.counts() == {"sampled_out": 4000 - kept}

    def test_of_an_execution_all_or_nothing(self) -> None:
        decider = sampling(0.5)
        for _ in range(50):
            one = new_execution_id()
            assert len({judged(decider, one) for _ in range(5)}) == 1

    def test_what_is_kept_in_any_case(self) -> None:
        decider = sampling(tail_slow=0.5, tail_types="leak, odd")
        assert judged(decider, level="error") == judged(decider, level="critical") == FAILED
        assert judged(decider, priority="critical") == URGENT
        for event_type in ("memory_alert", "leak", "odd"):
            assert judged(decider, event_type=event_type) == ALERT
        assert judged(decider, event_type="span", data={"duration_ns": SECOND // 2}) == SLOW
        for event_type in ("metric", "memory", "profile", "streamll.overhead"):
            assert judged(decider, event_type=event_type) == KEPT
        for data in ({"duration_ns": SECOND // 2 - 1}, {}, {"duration_ns": "long"}, {"duration_ns": True}, None):
            assert judged(decider, event_type="span", data=data) == LEFT_OUT
        assert judged(sampling(), event_type="span", data={"duration_ns": SECOND}) == LEFT_OUT

    def test_no_code_of_strange_fields_is_called(self) -> None:
        decider = sampling(tail_events=5, tail_slow=1)
        strange = hostile_class(object)(), hostile_class(str)("error"), hostile_class(dict)()
        with armed():
            for one in strange:
                verdict = decider.judge(one, one, one, one, one, one)
                assert verdict == KEPT  # nothing is known of it
                assert decider.judge("span", "e", "x", one, one, one) == LEFT_OUT


class TestOtherProcesses:
    def test_what_they_have_decided_holds_and_is_passed_on(self) -> None:
        with_rate: dict[float, Sampling] = {rate: sampling(rate) for rate in (0.0, 0.999999)}
        for rate, decider in with_rate.items():
            for flags, verdict in (("00", LEFT_OUT), ("01", KEPT), ("02", LEFT_OUT), ("03", KEPT)):
                trace_id = new_execution_id()
                with the_same_hub_afterwards(), extract({"traceparent": f"00-{trace_id}-{'1' * 16}-{flags}"}):
                    assert judged(decider, trace_id) == verdict, rate
                    hub.is_sampled = decider.is_sampled
                    assert inject({})["traceparent"].endswith(f"-{flags}")
                    hub.is_sampled = None
                # What ends after its block was left, as a generator's span may, is treated alike.
                assert judged(decider, trace_id) == verdict

    def test_the_flag_says_what_is_done_here(self) -> None:
        try:
            for rate in (0.0, 0.999999):
                hub.is_sampled = sampling(rate).is_sampled
                with execution():
                    assert inject({})["traceparent"].endswith("-01" if rate else "-00")
        finally:
            hub.is_sampled = None
        with execution():
            assert inject({})["traceparent"].endswith("-01")

    def test_what_goes_wrong_is_kept_from_then_on_here_and_there(self) -> None:
        decider = sampling(tail_events=10)
        trace_id = new_execution_id()
        assert judged(decider, trace_id) == LEFT_OUT
        assert judged(decider, trace_id, level="error") == FAILED
        assert judged(decider, trace_id) == KEPT
        assert decider.is_sampled(trace_id, "00")

    def test_what_is_remembered_is_bounded(self) -> None:
        decider = sampling(tail_events=10)
        for n in range(REMEMBERED + 10):
            judged(decider, str(n), level="error")
        assert len(decider._known) == REMEMBERED
        assert not decider.is_sampled("0", "")
        assert decider.is_sampled(str(REMEMBERED), "")


class Reader:
    """Takes what is let out, up to a number."""

    def __init__(self, room: int = 10**6) -> None:
        self.taken: list[Any] = []
        self.room = room

    def __call__(self, thing: Any) -> bool:
        if len(self.taken) >= self.room:
            return False
        self.taken.append(thing)
        return True


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3 * SECOND), st.sampled_from([0, 10, 3000, 6000])),
        st.tuples(st.just("release"), st.integers(0, 3 * SECOND), st.just(0)),
        st.tuples(st.just("tidy"), st.integers(0, 20 * SECOND), st.just(0)),
    ),
    max_size=60,
)


class TestWindow:
    @settings(max_examples=100)
    @given(steps, st.integers(1, 8))
    def test_against_the_plain_way(self, given_steps: list[tuple[str, int, int]], most: int) -> None:
        """Where it is tidied after each step, nothing beyond the bounds is held, and all is let out once or expired."""
        window, reader = Window(most, 12_000, 10.0), Reader()
        now = added = expired = 0
        model: list[tuple[int, int, int]] = []
        let_out: list[int] = []
        for what, later, size in given_steps:
            now += later
            if what == "add":
                window.add(reader, added, size, now)
                model.append((now, size + 256, added))
                added += 1
            elif what == "release":
                due = [entry for entry in model if now - entry[0] <= 10 * SECOND]
                expired += len(model) - len(due)
                let_out += [number for _, _, number in due]
                sent, ago = window.release(now)
                assert sent == len(due)
                assert ago == (now - due[0][0] if due else 0)
                model = []
            window.tidy(now)
            while model and (
                len(model) > most or sum(size for _, size, _ in model) > 12_000 or now - model[0][0] > 10 * SECOND
            ):
                model.pop(0)
                expired += 1
            assert len(window) == len(model)
            assert window.tally.read().get("expired", 0) == expired
        assert reader.taken == let_out
        assert window.tally.read().get("released", 0) == len(let_out)

    def test_it_is_bounded_without_being_tidied(self) -> None:
        window = Window(10, 10**6, 10.0)
        for n in range(10_000):
            window.add(Reader(), n, 100, n)
        assert len(window) <= 10 + 64

    def test_what_is_not_taken_ends_it_and_the_rest_is_held(self) -> None:
        window, reader = Window(10, 10**6, 10.0), Reader(room=3)
        for n in range(8):
            window.add(reader, n, 1, 0)
        assert window.release(0) == (4, 0)  # three were taken, and one was refused
        assert len(window) == 4
        reader.room = 100
        window.release(0)
        assert reader.taken == [0, 1, 2, 4, 5, 6, 7]

    def test_what_comes_while_it_is_let_out_waits_for_the_next_time(self) -> None:
        window = Window(10, 10**6, 10.0)
        seen: list[int] = []

        def send(n: int) -> bool:
            seen.append(n)
            if len(seen) < 20:
                window.add(send, n + 10, 1, 0)
            window.release(0)  # something goes wrong in the midst of it
            return True

        for n in range(3):
            window.add(send, n, 1, 0)
        window.release(0)
        assert len(seen) == len(set(seen)) == 22
