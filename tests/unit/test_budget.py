"""What must give way when monitoring costs too much, and when it may come back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamll.monitors.budget import (
    MOST_PATIENCE,
    PATIENCE,
    RECOVERY,
    SLOWEST_SAMPLING,
    STEPS,
    Allowance,
    Controller,
    Costs,
)

TARGET = 0.02
ROOM, BUSY, TOO_MUCH = TARGET * RECOVERY / 2, TARGET * 0.9, TARGET * 1.5


def feed(controller: Controller, *shares: float) -> list[int]:
    """The steps that it stands on after each interval of a second."""
    steps = []
    for share in shares:
        controller.decide(share, 1.0)
        steps.append(controller.step)
    return steps


def test_gives_way_in_the_stated_order() -> None:
    assert STEPS[0] == Allowance()
    assert [step.sampling for step in STEPS if step.memory] == [1, 2, 4, 8, 16]
    assert STEPS[-2:] == (Allowance(SLOWEST_SAMPLING, memory=False), Allowance(SLOWEST_SAMPLING, False, False))
    controller = Controller(TARGET)
    assert feed(controller, *[TOO_MUCH] * 10) == [1, 2, 3, 4, 5, 6, 6, 6, 6, 6]
    assert controller.allowance == STEPS[-1]
    assert controller.share == TOO_MUCH


def test_comes_back_one_step_at_a_time_and_only_where_there_was_room_for_long() -> None:
    controller = Controller(TARGET)
    feed(controller, TOO_MUCH, TOO_MUCH)
    assert feed(controller, *[ROOM] * (PATIENCE - 1), BUSY, *[ROOM] * (PATIENCE - 1)) == [2] * (2 * PATIENCE - 1)
    assert feed(controller, ROOM, *[ROOM] * PATIENCE) == [1] * PATIENCE + [0]


def test_does_not_go_to_and_fro() -> None:
    """A cost that fits on one step and not on the one before: it comes back ever more rarely."""
    controller = Controller(TARGET)
    steps = feed(controller, TOO_MUCH)
    changes = 0
    for _ in range(2000):
        share = TOO_MUCH if controller.step == 0 else ROOM
        changes += controller.decide(share, 1.0)
        steps.append(controller.step)
    assert changes < 2 * (2000 // MOST_PATIENCE + 10)
    assert steps.count(0) < 20
    feed(controller, *[ROOM] * 3 * MOST_PATIENCE)  # the load is gone: it forgets how patient it had become
    assert controller.step == 0
    assert feed(controller, TOO_MUCH, *[ROOM] * PATIENCE)[-1] == 0


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.001, 100)), max_size=200))
def test_moves_one_step_at_most_and_says_when(intervals: list[tuple[float, float]]) -> None:
    controller = Controller(TARGET)
    for spent, elapsed in intervals:
        before = controller.step
        changed = controller.decide(spent, elapsed)
        assert changed == (controller.step != before)
        assert abs(controller.step - before) <= 1
        assert controller.step >= before or controller.share < TARGET * RECOVERY
        assert controller.step > before or before == len(STEPS) - 1 or controller.share <= TARGET


def test_costs_add_up_by_tool() -> None:
    costs = Costs()
    costs.charge("memory", 5)
    costs.charge("profiler", 2)
    costs.charge("memory", 7)
    assert costs.read() == {"memory": 12, "profiler": 2}
