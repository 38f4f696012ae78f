"""The soak itself: a short one on real servers ends well, and each thing that it is there to notice it does notice."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from streamll.consumers import Received
from tests.fixtures.process import ServerUnavailable, skip_or_fail
from tests.fixtures.waiting import PATIENCE
from tests.soak.host import APPLICATION, ROOT
from tests.soak.reader import Reader
from tests.soak.run import Plan, Soak

pytestmark = [pytest.mark.integration, pytest.mark.redis, pytest.mark.timeout(300)]

COMMAND = (sys.executable, "-m", "tests.soak")
MISSING = 2

LIAR = """
from streamll.delivery.ledger import Ledger
from tests.soak.application import main
honest = Ledger.read
def read(self, *numbers):
    self.offered += self.offered == 500
    return honest(self, *numbers)
Ledger.read = read
main()
"""
DIES = """
import os, threading
from tests.soak.application import main
threading.Timer(1.0, os._exit, [3]).start()
main()
"""
CRIES = """
from tests.soak import application
def work(self):
    raise KeyError("a defect of the application")
application.Source.work = work
application.main()
"""


class Forgetful(Reader):
    """Swallows one event, as a broker might that loses what it has confirmed."""

    def take(self, item: Received) -> None:
        if item.seq != 150:
            super().take(item)


class Stammering(Reader):
    """Hands one event over twice, as a broker might where the fence is broken."""

    def take(self, item: Received) -> None:
        super().take(item)
        if item.seq == 150:
            super().take(item)


@pytest.mark.rabbitmq
def test_a_short_one_ends_well() -> None:
    arguments = ["--minutes", "0.17", "--rate", "300", "--seed", "5", "--line-every", "1"]
    arguments += ["--growth", "25"]  # in ten seconds, whatever is loaded when it is first needed counts for more
    done = subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=250)
    if done.returncode == MISSING:
        skip_or_fail(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all is well\n")
    assert re.search(r"faults: [1-9]\d* on redis, [1-9]\d* on rabbitmq", done.stdout)
    assert re.search(r"read back: [1-9][\d,]* events, [1-9][\d,]* dead letters", done.stdout)


def test_ctrl_c_ends_it_early_with_a_summary() -> None:
    with subprocess.Popen(
        [*COMMAND, "--on", "redis", "--minutes", "5", "--rate", "200", "--line-every", "0.5"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as soak:
        assert soak.stdout is not None
        assert soak.stderr is not None
        for line in soak.stdout:
            if "delivered" in line and "delivered 0" not in line:
                soak.send_signal(signal.SIGINT)
                break
        rest, errors = soak.communicate(timeout=3 * PATIENCE)
    if soak.returncode == MISSING:
        skip_or_fail(errors)
    assert soak.returncode == 0, rest + errors
    assert "of load, ended early; faults: " in rest
    assert rest.endswith("all is well\n")


def soaked(
    seconds: float = 3.0,
    growth: float = 0.25,
    application: Sequence[str] = APPLICATION,
    reader: Callable[..., Reader] = Reader,
) -> str:
    """What a short soak on Redis says is wrong."""
    plan = Plan(["redis"], seconds, rate=300, seed=1, growth=growth)
    lines: list[str] = []
    try:
        verdict = Soak(plan, lines.append, application, reader).run()
    except ServerUnavailable as error:
        skip_or_fail(str(error))
        raise
    assert verdict, lines
    assert "WRONG:" in lines[-1]
    return "\n".join(verdict)


def test_an_event_that_a_broker_lost_is_noticed() -> None:
    said = soaked(reader=Forgetful)
    assert "1 lost without a word: [(150, 150)]" in said
    assert "have arrived by its word" in said


def test_an_event_that_is_there_twice_is_noticed() -> None:
    said = soaked(reader=Stammering)
    assert "1 are there twice" in said
    assert "1 of the sources' numbers are there twice" in said


def test_more_memory_than_is_allowed_is_noticed() -> None:
    assert re.search(r"the application grew to .* MiB, where .* are allowed", soaked(growth=-0.5))


@pytest.mark.parametrize(
    ("program", "word"),
    [
        (LIAR, "the balance of redis does not hold"),
        (DIES, "ended with status 3"),
        (CRIES, "a defect of the application"),
    ],
)
def test_an_application_that_is_not_well_is_noticed(program: str, word: str) -> None:
    assert word in soaked(seconds=60.0, application=(sys.executable, "-c", program))
