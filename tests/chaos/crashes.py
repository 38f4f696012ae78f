"""Scenarios with a disk: applications that keep their events there and are killed, and those that deliver what they left.

What belongs here: what has to do with the spool. What does not: what a child does (children.py), or what is done to the
wire and the server (faults.py).
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from streamll.models import StreamllEvent
from streamll.sinks.base import SinkStats
from tests.chaos.children import (
    FORK,
    Killed,
    be_an_application,
    end,
    full_disk,
    is_over,
    left_in,
    quiet_fork,
    read_answers,
)
from tests.chaos.faults import Rule
from tests.chaos.real import RealScenario
from tests.chaos.watch import Watch
from tests.fixtures.waiting import wait_until

ADOPTS = {"durability": "process", "delivery_deadline": None}
"""Options of a sink that is there for what is in the spool."""


class Crashes(RealScenario):
    """A scenario on a real server, with a spool that its applications share."""

    def __init__(self, seed: int, server: Any, watch: Watch) -> None:
        self.missed: dict[str, int] = {}  # what those that adopted have dropped, by producer
        self.unheard = False  # what they have dropped is not known, since they did not live to tell
        self.spool: dict[str, Any] = {
            "spool_dir": tempfile.mkdtemp(prefix="streamll-chaos-"),
            "spool_bytes": (8 << 20) if seed % 3 else (256 << 10),
            "segment_bytes": 64 << 10,
        }
        super().__init__(seed, server, watch)

    def draw_options(self) -> dict[str, Any]:
        """See RealScenario."""
        drawn = super().draw_options()
        durability = self.rng.choice(["memory", "memory", "process", "disk"])
        if durability != "memory":
            drawn |= self.spool | {"durability": durability}
            if self.rng.random() < 0.3:
                drawn["buffer_overflow_strategy"] = "spill"
        return drawn

    def more_work(self) -> list[tuple[float, Rule]]:
        """See RealScenario."""
        return [*super().more_work(), (0.7, self.kill_application), (0.3, self.kill_adopter)]

    def more_faults(self) -> list[tuple[float, Rule]]:
        """See RealScenario."""
        faults = super().more_faults()
        return [*faults, (1.0, self.fill_disk)] if "durability" in self.options else faults

    def end(self) -> bool | None:
        """See RealScenario; then the next process delivers what is on disk."""
        closing = super().end()
        self.wrong.hold(is_over(self.sink, self.patience), "the worker does not end")
        self.hear(self.sink.stats())
        self.adopt_the_rest()
        return closing

    def clean_up(self) -> None:
        """See RealScenario."""
        shutil.rmtree(self.spool["spool_dir"], ignore_errors=True)

    def hear(self, stats: SinkStats, whole: bool = True) -> None:
        """See RealScenario: every process delivers what those before it have left, and may find it expired."""
        self.unheard = self.unheard or (not whole and self.options["delivery_deadline"] is not None)
        for adoption in stats.adopted:
            self.wrong.hold(adoption.balanced, f"an adoption does not balance: {adoption}")
            self.missed[adoption.producer] = self.missed.get(adoption.producer, 0) + sum(adoption.dropped.values())

    def may_miss(self, producer: str) -> int | None:
        """See RealScenario."""
        if self.unheard:
            return None
        return self.missed.get(producer, 0)

    def kill_application(self) -> str:
        """Another application, with a sink of its own whose events are on disk: it ends in the middle of emitting."""
        events = [self.event() for _ in range(self.rng.choice([20, 200, 1000]))]
        ends_after = self.rng.randrange(len(events))
        how = self.rng.choice(["wait", "wait", "_exit", "crash"])
        # What is dropped is counted nowhere once the application is gone: so it has room for everything.
        options = self.options | self.spool | {"delivery_deadline": None, "spool_bytes": 64 << 20}
        options["durability"] = self.rng.choice(["process", "process", "disk"])
        options["buffer_size"] = self.rng.choice([50, 10_000])
        options["buffer_overflow_strategy"] = "spill"
        reading, writing = os.pipe()
        with quiet_fork():
            process = FORK.Process(target=self._application, args=(options, writing, events, ends_after, how))
            process.start()
        os.close(writing)
        told = read_answers(reading, self.patience, ends_after if how == "wait" else None)
        process.kill()
        told += read_answers(reading, self.patience)
        os.close(reading)
        end(process, self.patience)
        producer, _, answers = told.partition(b"\n")
        if not producer:
            self.wrong.append(f"an application ended with {process.exitcode} before it had begun")
            return "failed"
        tear, dice = self.rng.random() < 0.25, Random(self.rng.random())
        torn = self._tear(producer.decode(), dice) if tear else ""
        self.children.append(Killed(producer.decode(), events, [answer == ord("1") for answer in answers], torn))
        return f"{how}, after {len(answers)} events{f', and its disk is hurt: {torn}' if torn else ''}"

    def _application(
        self, options: dict[str, Any], writing: int, events: list[StreamllEvent], ends_after: int, how: str
    ) -> None:
        be_an_application(self.make_sink(name="application", **options), writing, events, ends_after, how)

    def _tear(self, producer: str, dice: Random) -> str:
        """Hurt what a dead application left on disk; returns how, and nothing when there was nothing."""
        segments = sorted(Path(self.spool["spool_dir"]).glob(f"*/{producer}/*.segment"))
        if not segments:
            return ""
        path = dice.choice(segments)
        size = path.stat().st_size
        how = dice.choice(["flip", "cut", "empty", "blank"])
        if how in ("cut", "empty"):
            os.truncate(path, 0 if how == "empty" else dice.randrange(size))
        else:
            at = dice.randrange(min(size, 20_000))
            with path.open("r+b") as file:
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes(500) if how == "blank" else bytes([byte ^ (1 << dice.randrange(8))]))
        path.with_name("00000007.segment").write_bytes(dice.randbytes(300))
        return how

    def kill_adopter(self) -> str:
        """A process that delivers what the dead have left dies too."""
        with quiet_fork():
            process = FORK.Process(target=self._adopter)
            process.start()
        process.join(self.rng.choice([0.01, 0.03, 0.1]))
        process.kill()
        end(process, self.patience)
        return "done"

    def _adopter(self) -> None:
        logging.disable()
        self.make_sink(name="adopter", **self.options | self.spool | ADOPTS).start()
        time.sleep(self.patience)

    def fill_disk(self) -> str:
        """No file of this process grows: the disk is full, as far as it can tell."""
        with full_disk():
            return self.faults.meanwhile()

    def adopt_the_rest(self) -> None:
        """The next process delivers what is left on disk."""
        for _ in range(3):
            if not left_in(self.spool["spool_dir"]):
                return
            successor = self.make_sink(name=f"successor-{self.seed}", **self.options | self.spool | ADOPTS)
            successor.start()
            gone = wait_until(lambda: not left_in(self.spool["spool_dir"]), self.patience)
            stats = successor.stop(self.patience)
            self.hear(stats)
            self.note(f"adopted: {[(one.producer, one.accepted, one.dropped) for one in stats.adopted]}")
            self.wrong.hold(gone, f"what is in the spool stays there: {left_in(self.spool['spool_dir'])}; {stats}")
