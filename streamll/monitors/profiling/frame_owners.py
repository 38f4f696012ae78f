"""Which frames are somebody's: those of profiled actions' wrappers, and those that a span or an action is open in.

What belongs here: the marks on wrappers' code, and having spans say which frames are theirs for as long as somebody
samples stacks. What does not: walking stacks (stack_sampler.py).
"""

from __future__ import annotations

from types import CodeType

from streamll.hub import hub

marked: dict[int, tuple[CodeType, str]] = {}
"""Code whose frames stand for a profiled action, by identity: the code, which is kept for that, and the action's name.
Such a frame is the profiler's own, and no part of the stacks."""

_wanting: set[int] = set()


def want_frames(who: object) -> None:
    """Have spans and actions say in `hub.frames` which frames are theirs."""
    _wanting.add(id(who))
    if hub.frames is None:
        hub.frames = {}


def want_frames_no_more(who: object) -> None:
    """Have them say it no more, unless somebody else wants it."""
    _wanting.discard(id(who))
    if not _wanting:
        hub.frames = None
