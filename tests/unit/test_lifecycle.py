"""Which way a sink may go."""

from __future__ import annotations

import pytest

from streamll.delivery.lifecycle import TRANSITIONS, Phase, moved
from streamll.errors import LifecycleError

ALLOWED = {
    (Phase.NEW, Phase.RUNNING),
    (Phase.NEW, Phase.STOPPED),
    (Phase.RUNNING, Phase.DRAINING),
    (Phase.DRAINING, Phase.STOPPED),
}


@pytest.mark.parametrize("present", Phase)
@pytest.mark.parametrize("to", Phase)
def test_there_is_one_way_and_no_way_back(present: Phase, to: Phase) -> None:
    if (present, to) in ALLOWED:
        assert moved(present, to) is to
    else:
        with pytest.raises(LifecycleError, match=f"the sink is {present.value} and cannot become {to.value}"):
            moved(present, to)


def test_every_phase_is_in_the_table_and_ends_as_stopped() -> None:
    assert set(TRANSITIONS) == set(Phase)
    for phase in Phase:
        reached = {phase}
        for _ in Phase:
            reached |= {to for present in reached for to in TRANSITIONS[present]}
        assert Phase.STOPPED in reached
