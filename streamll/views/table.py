"""Tables of text, for people: what belongs here is how cells become lines, and nothing about what is in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def aligned(lines: Sequence[Sequence[str]], left: Iterable[int] = (0,)) -> list[str]:
    """Return lines whose columns stand below each other.

    Args:
        lines: Rows of as many cells each, the heading among them.
        left: The columns that begin at the same place; all others end at the same place, as numbers should.
    """
    starts = frozenset(left)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if column in starts else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
