"""Texts in which personal data or credentials stand: whether there are any, and the text without them.

What belongs here: bringing together what the searches of patterns.py and numbers.py find, and what takes its place. What
does not: keys (keys.py, rules.py), and the walk through data (values.py, plain.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from streamll.privacy.folding import folded, places
from streamll.privacy.kinds import BETWEEN, DROP, HASH, KEEP, MARGIN, TEXT_KINDS, TRUNCATE
from streamll.privacy.numbers import Hit, numbers
from streamll.privacy.patterns import words
from streamll.privacy.pseudonyms import Pseudonyms

_NO_MORE: Hit = (sys.maxsize, sys.maxsize, "")
_SHORTEST = len("pwd=x")
_RANK = {kind: rank for rank, kind in enumerate(TEXT_KINDS)}


class Redacted(NamedTuple):
    """A text without what was found in it.

    Attributes:
        text: The text; None when it is to be dropped.
        found: The kinds of what was found, each as often as it was.
    """

    text: str | None
    found: tuple[str, ...]


class Scanner:
    """Finds and replaces.

    Args:
        strategies: What is done to each kind, as `kinds.read_rules` returns it.
        is_secret: Whether a name within a text, as in `name=value`, is that of a secret.
        pseudonyms: Makes what stands for what is hashed; None when nothing is.
    """

    def __init__(
        self, strategies: Mapping[str, str], is_secret: Callable[[str], bool], pseudonyms: Pseudonyms | None = None
    ) -> None:
        self._strategies = strategies
        self._kept = frozenset(kind for kind in TEXT_KINDS if strategies[kind] == KEEP)
        self._is_secret = is_secret
        self._pseudonyms = pseudonyms

    def finds(self, text: str) -> bool:
        """Return whether anything is to be replaced in a text, or in any of several that are joined by `kinds.BETWEEN`."""
        return any(kind not in self._kept for _, _, kind in self._hits(folded(text)))

    def redact_each(self, texts: list[str]) -> dict[str, Redacted | None] | None:
        """Look through several texts at once, which takes less than one by one.

        Returns:
            What `redact` returns for each; None when nothing is found in any.
        """
        spans = self.spans(BETWEEN.join(texts))
        if not spans:
            return None
        redacted: dict[str, Redacted | None] = dict.fromkeys(texts)
        left, begin = iter(spans), 0
        span = next(left)
        for text in texts:
            behind = begin + len(text)
            own: list[Hit] = []
            while span[0] < behind:
                start, end, kind = span
                own.append((start - begin, end - begin, kind))
                if end > behind:
                    break
                span = next(left, _NO_MORE)
            if own:
                # A private key without an end goes on into the next texts; alone, each is itself again.
                whole = own[0][0] >= 0 and own[-1][1] <= len(text)
                redacted[text] = self._replaced(text, own, len(text)) if whole else self.redact(text)
            begin = behind + len(BETWEEN)
        return redacted

    def spans(self, text: str) -> list[Hit]:
        """Return where what is to be replaced stands, in order; what overlaps is one, of the more telling kind."""
        searched = folded(text)
        hits = [hit for hit in self._hits(searched) if hit[2] not in self._kept]
        merged: list[Hit] = []
        for start, end, kind in sorted(hits):
            if merged and start < merged[-1][1]:
                first, last, other = merged[-1]
                if (other, kind) == ("url_credentials", "email"):
                    continue  # what follows the password is the host
                merged[-1] = (first, max(last, end), min(kind, other, key=_RANK.__getitem__))
            else:
                merged.append((start, end, kind))
        if merged and len(searched) < len(text):
            place = places(text)
            merged = [(place[start], place[end - 1] + 1, kind) for start, end, kind in merged]
        return merged

    def redact(self, text: str, room: int | None = None) -> Redacted | None:
        """Replace what is found.

        Args:
            text: The text; what stands more than MARGIN characters behind the room is not looked at.
            room: Characters of the text that are wanted. What begins within them is replaced as a whole, and nothing
                of what stands behind them is returned.

        Returns:
            None when nothing is found within the room: the text may stay as it is, and be cut anywhere up to the room.
        """
        wanted = len(text)
        if room is not None and room < wanted:
            wanted = room
            text = text[: room + MARGIN]
        spans = [span for span in self.spans(text) if span[0] < wanted]
        if not spans:
            return None
        return self._replaced(text, spans, wanted)

    def _replaced(self, text: str, spans: list[Hit], wanted: int) -> Redacted:
        found = tuple([kind for _, _, kind in spans])
        pieces: list[str] = []
        at = 0
        for start, end, kind in spans:
            strategy = self._strategies[kind]
            if strategy == DROP:
                return Redacted(None, found)
            pieces += (text[at:start], self._instead(kind, strategy, text[start:end]))
            at = end
        pieces.append(text[at:wanted])
        return Redacted("".join(pieces), found)

    def _hits(self, text: str) -> Iterator[Hit]:
        if len(text) >= _SHORTEST:
            yield from words(text, self._is_secret)
            yield from numbers(text)

    def _instead(self, kind: str, strategy: str, match: str) -> str:
        if strategy == TRUNCATE:
            return _truncated(kind, folded(match))
        if strategy == HASH and self._pseudonyms is not None:
            return f"[{kind}:{self._pseudonyms.of(_normal(kind, folded(match)))}]"
        return f"[redacted:{kind}]"


def _normal(kind: str, match: str) -> str:
    """What is hashed: the same address or number however it was written."""
    if kind == "email":
        return match.lower().replace("%40", "@")
    if kind in ("phone", "card", "iban"):
        return "".join(filter(str.isalnum, match))
    return match


def _truncated(kind: str, match: str) -> str:
    """What may stay: digits that identify nobody alone, or what every key of a vendor begins with."""
    if kind == "email":
        local, _, domain = match.replace("%40", "@").partition("@")
        return f"{local[:1]}…@…" if len(local) > 2 and domain else "…@…"
    if kind in ("card", "phone"):
        kept = 4 if kind == "card" else 2
        return f"…{''.join(filter(str.isdigit, match))[-kept:]}"
    if kind == "iban":
        return f"{match[:2]}…"
    return f"[{kind}…]"
