"""What samples of stacks add up to: nothing is lost at any bound, and shares are those of what was put in."""

from __future__ import annotations

import concurrent.futures.thread
import dis
import sys
import threading
import time
from collections import Counter
from types import CodeType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamll.monitors.profiling.stacks import Owner, Samples, Stacks, by_owner, hot_spots, total_seconds
from streamll.monitors.profiling.waits import waits


def code_named(name: str, line: int = 1) -> CodeType:
    code = (lambda: None).__code__.replace(co_name=name, co_filename=f"/app/{name}.py", co_firstlineno=line)
    if sys.version_info >= (3, 11):
        return code.replace(co_qualname=name)
    return code


CODES = [code_named(name) for name in "abcdefgh"]

Seen = tuple[str, str, list[int], int, int, int]

SEEN = st.lists(
    st.tuples(
        st.sampled_from(["MainThread", "worker-1", "worker-2"]),
        st.sampled_from(["", "handle"]),
        st.lists(st.integers(0, len(CODES) - 1), min_size=1, max_size=12),
        st.integers(1, 3),
        st.integers(0, 10**9),
        st.integers(0, 10**9),
    ),
    max_size=40,
)

TINY = st.fixed_dictionaries(
    {
        "max_functions": st.integers(1, 10),
        "max_owners": st.integers(1, 6),
        "max_stacks": st.integers(1, 20),
        "max_records": st.integers(1, 20),
        "max_depth": st.integers(1, 12),
    }
)


def counted(stacks: Stacks, seen: list[Seen]) -> Samples:
    for thread, task, codes, line, cpu, wall in seen:
        owner = stacks.owner(thread, task)
        stacks.add(owner, stacks.stack([CODES[n] for n in codes]), line, cpu_ns=cpu, wall_ns=wall)
    return stacks.read()


class TestCount:
    @given(SEEN)
    @settings(max_examples=50)
    def test_has_each_sample_in_its_place(self, seen: list[Seen]) -> None:
        samples = counted(Stacks(), seen)
        expected: Counter[tuple[str, str, str, int]] = Counter()
        for thread, task, codes, line, cpu, _ in seen:
            expected[thread, task, "".join(CODES[n].co_name for n in reversed(codes)), line] += cpu
        found: Counter[tuple[str, str, str, int]] = Counter()
        for sample in samples.samples:
            owner = samples.owners[sample.owner]
            path = "".join(samples.functions[place].name for place in samples.stacks[sample.stack])
            found[owner.thread, owner.task, path, sample.line] += sample.cpu_ns
        assert found == expected
        assert sum(sample.times for sample in samples.samples) == len(seen)

    @given(SEEN, TINY)
    @settings(max_examples=100)
    def test_loses_no_time_at_any_bound_and_stays_within_it(self, seen: list[Seen], bounds: dict[str, int]) -> None:
        stacks = Stacks(**bounds)
        samples = counted(stacks, seen)
        assert sum(sample.cpu_ns for sample in samples.samples) == sum(each[4] for each in seen)
        assert sum(sample.wall_ns for sample in samples.samples) == sum(each[5] for each in seen)
        assert sum(sample.times for sample in samples.samples) == len(seen)
        stats = stacks.stats()
        assert stats.functions <= bounds["max_functions"]
        assert stats.owners <= bounds["max_owners"]
        assert stats.stacks <= 2 * bounds["max_stacks"] + 1
        assert stats.records <= bounds["max_records"] + bounds["max_owners"] + 1
        assert stats.deep == sum(len(each[2]) > bounds["max_depth"] for each in seen)
        assert all(len(stack) <= bounds["max_depth"] + 1 for stack in samples.stacks)

    def test_tells_code_apart_that_is_equal_but_not_the_same(self) -> None:
        one, other = code_named("f", 1), code_named("f", 1)
        assert one == other
        stacks = Stacks()
        assert stacks.stack([one]) == stacks.stack([other])  # the same words
        assert stacks.stack([one]) != stacks.stack([code_named("f", 2)])

    def test_lets_go_of_code_that_is_made_all_the_time(self) -> None:
        stacks = Stacks()
        for n in range(5000):
            stacks.stack([code_named("template", n % 10)])
        assert len(stacks._codes) <= 4096
        assert stacks.stats().functions == 10

    def test_begins_from_zero_when_told(self) -> None:
        stacks = Stacks()
        counted(stacks, [("t", "", [1, 2], 1, 5, 5)])
        stacks.clear()
        assert stacks.read().samples == ()


class TestAnswers:
    @given(SEEN)
    @settings(max_examples=50)
    def test_shares_are_of_what_was_put_in(self, seen: list[Seen]) -> None:
        samples = counted(Stacks(), seen)
        for mode in ("cpu", "wall"):
            weights = [(codes, cpu if mode == "cpu" else wall) for _, _, codes, _, cpu, wall in seen]
            whole = sum(weight for _, weight in weights)
            spots = hot_spots(samples, mode)
            assert sum(spot.self_seconds for spot in spots) == pytest.approx(whole / 1e9)
            assert total_seconds(samples, mode) == pytest.approx(whole / 1e9)
            assert all(spot.self_share <= spot.total_share <= 1 for spot in spots)
            own: Counter[str] = Counter()
            total: Counter[str] = Counter()
            for codes, weight in weights:
                own[CODES[codes[0]].co_filename] += weight
                for n in set(codes):
                    total[CODES[n].co_filename] += weight
            assert {spot.file: round(spot.self_seconds * 1e9) for spot in spots} == {
                file: own[file] for file, ns in total.items() if ns
            }
            assert {spot.file: round(spot.total_seconds * 1e9) for spot in spots} == {
                file: ns for file, ns in total.items() if ns
            }
            owners = by_owner(samples, mode)
            assert sum(row["seconds"] for row in owners) == pytest.approx(whole / 1e9)

    def test_recursion_counts_once_in_the_total(self) -> None:
        stacks = Stacks()
        stacks.add(stacks.owner("t"), stacks.stack([CODES[0]] * 5 + [CODES[1]]), 7, cpu_ns=10, wall_ns=0)
        first, second = hot_spots(stacks.read())
        assert (first.file, first.line, first.self_share, first.total_share) == ("/app/a.py", 7, 1.0, 1.0)
        assert (second.self_share, second.total_share) == (0.0, 1.0)

    def test_owners_are_told_by_all_they_are_known_by(self) -> None:
        stacks = Stacks()
        for owner in (Owner("t", "task", "act", "op"), Owner("t", "task", "act"), Owner("t")):
            stacks.add(stacks.owner(*owner), stacks.stack(CODES[:1]), 1, cpu_ns=1, wall_ns=0)
        assert [row["operation"] for row in by_owner(stacks.read())] == ["op", "", ""]


_lock = threading.Lock()
_sleep = time.sleep
WORDS = ["a"]


def waits_at_the_last_call(code: CodeType) -> bool:
    calls = [
        each.offset
        for each in dis.get_instructions(code)
        if each.opname.startswith("CALL") and not each.opname.startswith("CALL_INTRINSIC")
    ]
    return waits(code, calls[-1])


class TestWaits:
    def test_at_a_call_of_what_waits(self) -> None:
        sleep = _sleep
        assert waits_at_the_last_call((lambda: time.sleep(1)).__code__)
        assert waits_at_the_last_call((lambda: _lock.acquire(True, timeout=1 + 2)).__code__)
        assert waits_at_the_last_call((lambda: sleep(0.5)).__code__)

    def test_not_at_a_call_of_what_works(self) -> None:
        items = [3, 1]
        assert not waits_at_the_last_call((lambda: sorted(items)).__code__)
        assert not waits_at_the_last_call((lambda: ",".join("ab")).__code__)
        assert not waits_at_the_last_call((lambda: sum([1, 2], start=3)).__code__)
        assert not waits_at_the_last_call((lambda: (lambda f: f(items))(len)).__code__)

    def test_at_the_beginning_of_a_block(self) -> None:
        def locked() -> None:
            with _lock:
                pass

        words = ("SETUP_WITH", "BEFORE_WITH")
        entering = [each for each in dis.get_instructions(locked.__code__) if each.opname in words]

        assert [waits(locked.__code__, each.offset) for each in entering] == [True]

    def test_at_a_call_by_keywords_and_at_an_idle_worker(self) -> None:
        assert waits_at_the_last_call((lambda: _lock.acquire(blocking=True, timeout=1)).__code__)
        assert not waits_at_the_last_call((lambda: _sleep(1 if WORDS else 2)).__code__)  # cannot be told
        assert not waits_at_the_last_call((lambda: [_sleep][0](1)).__code__)
        worker = concurrent.futures.thread._worker.__code__
        calls = [each.offset for each in dis.get_instructions(worker) if each.opname.startswith("CALL")]
        assert all(waits(worker, offset) for offset in calls)

    @given(st.integers(-10, 100_000))
    def test_never_fails_whatever_the_instruction(self, instruction: int) -> None:
        assert waits(hot_spots.__code__, instruction) in (True, False)
