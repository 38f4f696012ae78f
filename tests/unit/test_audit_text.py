"""What an audit says: the table, the remarks, the verdict, and what changes while it goes on."""

from __future__ import annotations

import pytest

from streamll.views.audit import Audit
from streamll.views.audit_text import audit_lines, verdict
from streamll.views.audit_watch import Watch
from streamll.views.line import HARMFUL
from tests.unit.test_audit import P, add, close, declare, gap

CHILD = f"{P}.0123456789abcdef"


def lines(audit: Audit, waiting: int = 0) -> list[str]:
    return audit_lines(audit.report(), waiting)


class TestText:
    def test_all_is_well(self) -> None:
        audit = Audit()
        add(audit, *range(1, 1235))
        close(audit, 1234)
        assert lines(audit) == [
            "producer          events  doubles  out of order  first   last  declared  dead letters  undeclared  end",
            f"{P}   1,234        0             0      1  1,235         0             0           0  closed",
            "no undeclared loss: 1,234 events of 1 producer",
        ]

    def test_all_that_there_can_be_to_say(self) -> None:
        audit = Audit(most_ranges=20)
        add(audit, *range(1001, 1061, 2), producer=CHILD)  # more than is remembered
        add(audit, 1001, producer=CHILD)
        declare(audit, (1002, 1002), (1061, 1062), (1064, 1064), producer=CHILD)
        add(audit, 1064, 1066, 1065, 1065, producer=CHILD)
        audit.add(CHILD, 1066, redelivered=True)
        audit.add_note(CHILD, 1068, gap((1, 2)))
        audit.cut()
        add(audit, 1080, producer=CHILD)
        audit.add_stranger()
        text = lines(audit)
        assert text[2:] == [
            f"{CHILD}: forked from {P}",
            f"{CHILD}: UNDECLARED: 32 numbers missing: {text[3].partition('missing: ')[2]}",
            f"{CHILD}: begins at 1,001: what came before was trimmed, or not read",
            f"{CHILD}: declared lost: overflow 4",
            f"{CHILD}: 1 declared number there after all, which is no loss",
            f"{CHILD}: 11 numbers may have gone before we read there: not judged",
            f"{CHILD}: 1 message delivered again: not counted as double",
            f"{CHILD}: 1 note malformed: what they declare does not count",
            f"{CHILD}: 1 entry too late to be told from doubles",
            f"{CHILD}: 1 number declared too late to be remembered: counted as undeclared",
            "1 entry without a producer and number: not judged",
            "1 producer not closed: what they sent last cannot be judged",
            "UNDECLARED LOSS: 32 numbers of 1 producer missing, and nothing says why",
        ]
        assert text[3].endswith(" 1,060 and 22 more")

    def test_a_beginning_that_counts(self) -> None:
        audit = Audit()
        audit.whole = True
        add(audit, 5)
        assert not any("begins at" in line for line in lines(audit))
        assert any(line.endswith("UNDECLARED: 4 numbers missing: 1-4") for line in lines(audit))

    def test_gaps_that_are_not_remembered(self) -> None:
        audit = Audit(most_ranges=1)
        add(audit, 1, 3)
        assert any(line.endswith("missing: not remembered which") for line in lines(audit))

    def test_many_producers(self) -> None:
        audit = Audit(most_producers=200)
        for number in range(1000):
            add(audit, 1, producer=f"p{number}")
        add(audit, 3, producer="p999")
        text = lines(audit)
        assert text[1].startswith("p999 ")
        assert any(line.startswith("and ") and "more producers" in line for line in text)
        assert any(line.endswith("in the counts only") for line in text)
        assert len(text) < 60

    def test_what_may_still_come_is_not_judged(self) -> None:
        audit = Audit()
        add(audit, 1, 3)
        declare(audit, (4, 4))
        assert lines(audit, waiting=1)[-2:] == [
            "1 number missing for a short time only: not judged yet",
            "no undeclared loss: 2 events of 1 producer; 1 event declared lost",
        ]
        assert verdict(audit.report()).startswith("UNDECLARED LOSS: 1 number of 1 producer missing")

    def test_it_harms_no_terminal(self) -> None:
        evil = "\x1b[2J\u202e\n"
        audit = Audit()
        add(audit, 1, 3, producer=f"{evil}.{evil}")
        declare(audit, (4, 4), reason=evil, producer=f"{evil}.{evil}")
        watch = Watch(audit, 0.0)
        assert not any(HARMFUL.search(line) for line in lines(audit))
        assert not any(HARMFUL.search(change.text) for change in watch.changes(0.0))


class TestWatch:
    @pytest.fixture
    def audit(self) -> Audit:
        return Audit()

    @pytest.fixture
    def watch(self, audit: Audit) -> Watch:
        return Watch(audit, grace=10.0)

    def told(self, watch: Watch, now: float) -> list[tuple[str, int, str]]:
        return [(change.kind, change.count, change.text) for change in watch.changes(now)]

    def test_nothing_changes_while_all_is_well(self, audit: Audit, watch: Watch) -> None:
        add(audit, 1)
        assert self.told(watch, 0.0) == [("producer", 1, f"new producer {P}, from number 1 on")]
        add(audit, 2, 3, 4)
        assert self.told(watch, 1.0) == []
        close(audit, 4)
        assert self.told(watch, 2.0) == [("closed", 4, f"{P} closed after 4 events")]
        close(audit, 4)
        assert [change.kind for change in watch.changes(3.0)] == ["double"]

    def test_a_child(self, audit: Audit, watch: Watch) -> None:
        add(audit, 7, producer=CHILD)
        assert self.told(watch, 0.0)[0][2] == f"new producer {CHILD}, forked from {P}, from number 7 on"

    def test_a_hole_is_told_after_its_time_of_grace(self, audit: Audit, watch: Watch) -> None:
        add(audit, 1, 4)
        watch.changes(0.0)
        assert watch.waiting == 2
        assert self.told(watch, 9.9) == []
        assert self.told(watch, 10.0) == [("undeclared", 2, f"UNDECLARED LOSS: 2 missing of {P}: 2-3")]
        assert watch.waiting == 0
        assert self.told(watch, 30.0) == []

    def test_each_hole_has_its_own(self, audit: Audit, watch: Watch) -> None:
        add(audit, 1, 3)
        watch.changes(0.0)
        add(audit, 6)
        watch.changes(5.0)
        assert [text[-1] for _, _, text in self.told(watch, 10.0)] == ["2"]
        assert watch.waiting == 2
        assert [text[-3:] for _, _, text in self.told(watch, 15.0)] == ["4-5"]

    def test_what_comes_or_is_declared_in_time_is_not_told(self, audit: Audit, watch: Watch) -> None:
        add(audit, 1, 5)
        watch.changes(0.0)
        add(audit, 2)
        declare(audit, (4, 4), (6, 6))
        assert [kind for kind, _, _ in self.told(watch, 5.0)] == ["declared"]
        assert [text[-1] for _, _, text in self.told(watch, 10.0)] == ["3"]

    def test_what_is_accounted_for_when_it_was_told(self, audit: Audit, watch: Watch) -> None:
        add(audit, 1, 9)
        watch.changes(0.0)
        watch.changes(10.0)
        add(audit, 4)
        audit.add_dead_letter(P, 6)
        assert self.told(watch, 11.0) == [
            ("dead_letter", 1, f"1 of {P} among the dead letters"),
            ("found", 2, f"2 that seemed lost of {P} accounted for: 4, 6"),
        ]
        assert self.told(watch, 12.0) == []

    def test_what_was_declared_says_why(self, audit: Audit, watch: Watch) -> None:
        add(audit, 1)
        declare(audit, (2, 3))
        watch.changes(0.0)
        declare(audit, (4, 4))
        declare(audit, (5, 9), reason="expired")
        assert self.told(watch, 1.0) == [("declared", 6, f"6 declared lost by {P}: overflow 1, expired 5")]

    def test_all_other_kinds(self, audit: Audit, watch: Watch) -> None:
        add(audit, 1)
        watch.changes(0.0)
        add(audit, 1, 1)
        audit.add_note(P, 2, None)
        audit.cut()
        add(audit, 5)
        assert self.told(watch, 1.0) == [
            ("double", 2, f"2 of {P} there twice"),
            ("unread", 2, f"2 of {P} may have gone before we read there"),
            ("malformed", 1, f"1 of {P} malformed notes"),
        ]

    def test_what_is_settled_is_not_told_as_found(self) -> None:
        audit = Audit(most_ranges=10)
        watch = Watch(audit, 0.0)
        add(audit, 1, 3, 5, 7)
        assert [change.count for change in watch.changes(0.0)] == [1, 3]
        add(audit, *range(9, 200, 2))
        assert {change.kind for change in watch.changes(1.0)} == {"undeclared"}

    def test_producers_that_were_set_aside_are_forgotten(self) -> None:
        audit = Audit(most_producers=2)
        watch = Watch(audit, 10.0)
        add(audit, 1, 3, producer="a")
        watch.changes(0.0)
        for name in "bcd":
            add(audit, 1, producer=name)
        assert {change.producer for change in watch.changes(1.0)} == {"c", "d"}
        assert watch.waiting == 0
        assert not watch._known.keys() - {"c", "d"}
