"""Characters that look like others: texts as they are searched, so that a full-width at-sign or a joiner hides nothing.

What belongs here: from a text to the one that is searched, and from a place in that back to one in the text. What does not:
what is searched for (patterns.py, numbers.py).

A character whose compatibility form (Unicode NFKC) is one ASCII character counts as that one, a decimal digit of any
script as the ASCII digit, dashes as `-`, spaces as a space. What takes no place (joiners, direction marks, soft hyphens, variation
selectors, accents written behind their letter) counts as not there. Letters of other alphabets that look like Latin ones
stay as they are.
"""

from __future__ import annotations

import unicodedata

_TAKES_NO_PLACE = frozenset(
    code
    for first, last in (
        *((0xAD, 0xAD), (0x300, 0x36F), (0x61C, 0x61C), (0x180E, 0x180E), (0x200B, 0x200F), (0x202A, 0x202E)),
        *(
            (0x2060, 0x206F),
            (0x3164, 0x3164),
            (0xFE00, 0xFE0F),
            (0xFEFF, 0xFEFF),
            (0xE0000, 0xE007F),
            (0xE0100, 0xE01EF),
        ),
    )
    for code in range(first, last + 1)
)
_BOUND = 8192


class _Folds(dict[int, "str | None"]):
    """What each character counts as, found out when it is first met; emptied when a text has made it large."""

    def __missing__(self, code: int) -> str | None:
        if len(self) >= _BOUND:
            self.clear()
        self[code] = found = _fold(code)
        return found


def _fold(code: int) -> str | None:
    character = chr(code)
    if code < 0x80:
        return character
    if code in _TAKES_NO_PLACE:
        return None
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "Pd" or code == 0x2212:  # the minus sign
        return "-"
    if category == "Zs":
        return " "
    plain = unicodedata.normalize("NFKC", character)
    return plain if len(plain) == 1 and plain.isascii() else character


_folds = _Folds()


def folded(text: str) -> str:
    """Return the text as it is searched; it is shorter where something takes no place."""
    return text if text.isascii() else text.translate(_folds)


def places(text: str) -> list[int]:
    """Return for each character of the folded text where it stands in the text, and at last where the text ends."""
    return [*(place for place, character in enumerate(text) if _folds[ord(character)] is not None), len(text)]
