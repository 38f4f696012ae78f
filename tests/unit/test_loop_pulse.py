"""When a loop is late, and when that is a block: against an account of every moment at which it could have beaten."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from streamll.monitors.loops.pulse import MAX_FRAMES, Notes, Pulse, Seen

INTERVAL, THRESHOLD = 0.05, 0.1


def seen(frame: str, task: str = "") -> Seen:
    return Seen(frame, [frame], "module", "function", "operation", task, None)


@given(st.lists(st.tuples(st.floats(0, 0.3), st.booleans()), max_size=50))
def test_lags_and_blocks_are_those_of_the_beats_between_pauses(beats: list[tuple[float, bool]]) -> None:
    pulse, now, due = Pulse(INTERVAL, THRESHOLD), 100.0, None
    lags, blocks = [], []
    for late, paused in beats:
        now += INTERVAL + late
        if due is not None:
            looked = pulse.look(now)
            assert (looked is not None) == (now >= due + THRESHOLD / 2)
            assert looked is None or (looked.due == due and pulse.is_due(due))
        pulse.beat(now)
        if due is not None:
            lags.append(now - due)
            if now - due >= THRESHOLD:
                blocks.append((due, now))
        due = now + INTERVAL
        assert pulse.look(now) is None
        assert pulse.is_due(due)
        if paused:
            pulse.pause()
            due = None
            assert pulse.look(now + 3600) is None
    assert list(pulse.lags) == [max(0.0, lag) for lag in lags]
    assert list(pulse.blocks) == blocks
    assert pulse.beats == len(beats)


@given(st.floats(1, 1e6), st.floats(0, 1), st.floats(0.001, 1), st.floats(1, 20))
def test_whoever_looks_when_told_to_sees_a_late_beat_as_soon_as_it_may_be_a_block(
    beat: float, wait: float, interval: float, times: float
) -> None:
    pulse = Pulse(interval, threshold=interval * times)
    assert pulse.look_next(beat) == beat + interval
    pulse.beat(beat)
    now = beat + wait
    following = pulse.look_next(now)
    assert following > now
    if pulse.look(now) is None:
        assert following == beat + interval + interval * times / 2
        assert pulse.look(following) is not None
    else:
        assert following == now + interval


def test_a_first_beat_that_was_asked_for_is_late_as_any_other() -> None:
    pulse = Pulse(INTERVAL, THRESHOLD)
    pulse.expect(100.0)
    assert pulse.look(100.01) is None
    late = pulse.look(100.06)
    assert late is not None
    assert late.due == 100.0
    pulse.beat(100.2)
    assert list(pulse.blocks) == [(100.0, 100.2)]
    pulse.pause()
    pulse.expect(200.0)
    pulse.pause()
    pulse.beat(300.0)
    assert len(pulse.blocks) == 1


@given(st.lists(st.integers(0, 3 * MAX_FRAMES), max_size=200))
@example([*range(3 * MAX_FRAMES)])
def test_notes_count_what_was_seen_most_within_bounds(frames: list[int]) -> None:
    notes = Notes(1.0)
    for n in frames:
        notes.add(seen(str(n), f"task {n}" if n % 2 else ""))
    assert notes.samples == len(frames)
    assert len(notes.frames) == min(len(set(frames)), MAX_FRAMES)
    assert all(count == frames.count(int(frame)) for frame, count in notes.frames.items())
    assert all(count == frames.count(int(task.split()[1])) for task, count in notes.tasks.items())
    assert (notes.first.frame if notes.first else None) == (str(frames[0]) if frames else None)
