"""The verdict of a soak, on numbers made by hand: it is silent when all agrees, and has a word for each thing that does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from streamll.models import CLOSING, GAP, StreamllEvent
from streamll.ranges import RangeSet
from streamll.views.audit import Audit
from tests.soak.buckets import Buckets
from tests.soak.lines import application_line, clock, sink_line
from tests.soak.report import Order, Report, SinkReport, read_order, read_report, to_line
from tests.soak.verdict import EARLY, FILLING, LATE, MIB, MIDDLE, QUIET, SETTLING, Memory, Read, judge

SINK = SinkReport(
    offered=10,
    accepted=9,
    refused={"buffer_full": 1},
    delivered=6,
    dead_lettered=1,
    dropped={"overflow": 2},
    producer="p",
    circuit="closed",
)


@dataclass
class Account:
    """What was read in the good case: 1 to 6 are there, 7 is a dead letter, 8 and 9 were dropped, 10 closes."""

    sink: SinkReport
    audit: Audit
    sources: dict[str, RangeSet]
    once: bool = True
    again: int = 0

    @classmethod
    def good(cls) -> Account:
        audit = Audit()
        audit.whole = True
        for seq in range(1, 7):
            audit.add("p", seq)
        audit.add_dead_letter("p", 7)
        gap = StreamllEvent(event_type=GAP, data={"count": 2, "ranges": [(8, 9)], "reasons": {"overflow": 2}})
        audit.add_note("p", 9, gap)
        audit.add_note("p", 10, StreamllEvent(event_type=CLOSING, data={"last": 9}))
        return cls(SINK, audit, {"a": RangeSet([(0, 3)]), "b": RangeSet([(0, 0), (3, 4)])})

    def verdict(self) -> list[str]:
        read = Read(self.once, self.audit.report(), self.sources, self.again)
        return judge("redis", {"a": 5, "b": 5}, self.sink, read)


def test_what_agrees_is_right() -> None:
    assert Account.good().verdict() == []


def change_sink(**numbers: Any) -> Callable[[Account], None]:
    def change(account: Account) -> None:
        account.sink = replace(account.sink, **numbers)

    return change


def swallow(account: Account) -> None:
    account.audit = Audit()
    account.audit.whole = True
    for seq in (1, 2, 4, 5, 6):
        account.audit.add("p", seq)


def add_double(account: Account) -> None:
    account.audit.add("p", 3)


def come_late(account: Account) -> None:
    account.audit.add("p", 12)
    account.audit.add("p", 11)


def know_a_stranger(account: Account) -> None:
    account.audit.add("q", 1)


def add_nonsense(account: Account) -> None:
    account.audit.add_stranger()


def skip_some(account: Account) -> None:
    account.audit.cut()
    account.audit.add("p", 20)


def lose_a_number(account: Account) -> None:
    account.sources["a"].remove(2, 2)


def go_beyond(account: Account) -> None:
    account.sources["a"].add_one(5)


def name_another_source(account: Account) -> None:
    account.sources["c"] = RangeSet([(0, 0)])


def read_again(account: Account) -> None:
    account.again = 1


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (change_sink(offered=11), "the balance does not hold"),
        (change_sink(offered=11, refused={"buffer_full": 2}), "the sink counts 11 as offered"),
        (change_sink(delivered=5, in_flight=1), "the fate of 8 is known"),
        (change_sink(delivered=0, buffered=6), "nothing was delivered"),
        (change_sink(defects=1, last_error="KeyError"), "defects: KeyError"),
        (change_sink(lost_after_ack=1), "counted as lost by a server"),
        (change_sink(producer="other"), "events of ['p'], where the sink is other"),
        (change_sink(delivered=7, dropped={"overflow": 1}), "7 were delivered by its word, and 6 are"),
        (change_sink(delivered=5, dropped={"overflow": 3}), "it dropped 3, and declared 2"),
        (change_sink(delivered=5, dead_lettered=2), "2 dead letters by its word, and 1 are there"),
        (swallow, "lost without a word: [(3, 3)]"),
        (swallow, "there is no closing record"),
        (add_double, "1 are there twice"),
        (come_late, "1 are out of order"),
        (know_a_stranger, "events of ['p', 'q']"),
        (add_nonsense, "there is what no sink writes"),
        (skip_some, "may have gone before they were read"),
        (lose_a_number, "7 have arrived by its word, and 6 have"),
        (go_beyond, "a emitted 5, and these are there too: [5]"),
        (name_another_source, "events of sources that nobody knows: ['c']"),
        (read_again, "1 of the sources' numbers are there twice"),
        (lose_a_number, "6 have arrived by the sources' numbers, and 7 by the sink's"),
    ],
)
def test_what_does_not_agree_is_said(harm: Callable[[Account], None], word: str) -> None:
    account = Account.good()
    harm(account)
    assert word in "\n".join(account.verdict())


def test_where_doubles_are_allowed_they_are_no_fault() -> None:
    account = Account.good()
    add_double(account)
    account.once, account.again = False, 1
    assert account.verdict() == []


def test_what_was_given_up_without_an_answer_may_have_arrived() -> None:
    account = Account.good()
    account.sink = replace(SINK, delivered=5, dropped={"overflow": 2, "unconfirmed": 1})
    assert account.verdict() == []


def test_memory_has_a_bound_at_any_moment() -> None:
    memory = Memory(0.10, reserve=2 * MIB)
    memory.see(40 * MIB, QUIET)
    memory.held = 8 * MIB
    memory.see(50 * MIB, FILLING)
    assert str(memory) == "RSS 50.0 MiB (warm-up)"
    memory.see(54 * MIB, SETTLING)
    memory.see(52 * MIB, SETTLING)
    assert str(memory) == "RSS 52.0 MiB (+4.0% since the warm-up; peak 54.0, bound 54.0; floor 52.0)"
    assert memory.judge() == []
    memory.see(55 * MIB, EARLY)
    assert not memory.within
    assert "grew to 55.0 MiB, where 54.0 are allowed: 40.0 at first and 10%, 8.0 that" in memory.judge()[0]


def test_memory_has_a_floor_that_must_not_rise() -> None:
    memory = Memory(0.10, held=100 * MIB)
    for rss, phase in ((40, QUIET), (45, SETTLING), (60, EARLY), (50, EARLY), (80, MIDDLE), (80, LATE), (55, LATE)):
        memory.see(rss * MIB, phase)
    assert memory.judge() == []
    memory.floors[LATE] = 56 * MIB
    assert "never has less than 56.0 MiB in the last quarter, where it had 50.0" in memory.judge()[0]


def test_buckets_are_no_wider_than_a_sixteenth() -> None:
    buckets = Buckets()
    buckets.add(range(1000))
    for share, exact in ((0.5, 499), (0.99, 989), (1.0, 999)):
        found = buckets.quantile(share)
        assert found is not None
        assert exact <= found <= exact * 17 / 16
    assert Buckets().quantile(0.5) is None
    others = Buckets(buckets.counts)
    others.join(buckets.counts)
    assert others.counts.total() == 2000
    assert others.quantile(0.5) == buckets.quantile(0.5)


def test_reports_and_orders_arrive_as_they_were() -> None:
    report = Report({"a": 5}, {17: 3}, {"redis": SINK}, ["something"], last=True)
    assert read_report(to_line(report)) == report
    order = Order(["redis://host"], {"buffer_size": 7, "oversize": "cut"}, 100.0, 0.5, 30.0)
    assert read_order(to_line(order)) == order


def test_lines_say_what_there_is() -> None:
    emit = Buckets({2000: 99, 9000: 1})
    line = application_line(3661, emit, Memory(0.1, now=MIB))
    assert line == "1:01:01 application: emit p50 2.1, p99 2.1, p99.9 9.5 us; RSS 1.0 MiB (warm-up)"
    line = sink_line("redis", replace(SINK, delivered=5), Buckets(), ["freeze"])
    for word in (
        "offered 10",
        "refused (buffer_full) 1",
        "dropped (overflow) 2",
        "DOES NOT BALANCE",
        "p50 -",
        "fault: freeze",
    ):
        assert word in line
    assert clock(59.9) == "00:59"
