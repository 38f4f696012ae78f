"""Privacy for an application's own use: is there an address in a text, and data without what is private.

What belongs here: the public functions, and the walk through data of usual types that they and `streamll scrub` take. What
does not: how things are found, and the walk through an event's data, which is bounded and makes it encodable (values.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

from streamll.hub import hub
from streamll.privacy.folding import folded
from streamll.privacy.keys import REDACTED
from streamll.privacy.kinds import DROP, KEY, REDACT, read_rules
from streamll.privacy.numbers import numbers
from streamll.privacy.patterns import emails
from streamll.privacy.process_key import ProcessPseudonyms
from streamll.privacy.pseudonyms import Pseudonyms
from streamll.privacy.rules import Rules, text_of

MAX_DEPTH = 64
"""Levels of nesting that are looked into; what is deeper is replaced."""

TOO_DEEP = "too_deep"
"""The kind that is told of then."""

DROPPED: Any = object()
"""What `Sanitizer.value` returns when nothing is to be left of a value."""

Path = tuple[str, ...]
Note = Callable[[Path, str, str, int], None]
"""Is told of each thing found: where, its kind, what is done to it, and how many characters it has (0 when it is no text)."""


def detect_email(text: str) -> bool:
    """Return whether a text contains an e-mail address.

    >>> detect_email("write to user@example.com"), detect_email("react@18.2.0")
    (True, False)
    """
    return any(True for _ in emails(folded(text)))


def detect_phone(text: str) -> bool:
    """Return whether a text contains a phone number: `+44 20 7123 4567`, `(123) 456-7890`, `123-456-7890`.

    Timestamps, ids, versions, IP addresses and plain numbers are none, unless the text says so: `tel: 5551234567`.
    """
    return any(kind == "phone" for _, _, kind in numbers(folded(text)))


def hash_sensitive(value: Any, key: str | bytes | None = None) -> str:
    """Return a keyed pseudonym of a value: 16 hex digits, the same for the same value and key, and for 5 and "5".

    Args:
        value: Text, bytes, a number or a UUID; None counts as an empty text.
        key: The secret without which nobody can try values. Default: the configured pseudonym_key, else that in
            STREAMLL_PSEUDONYM_KEY, else one made by chance for this process, which is said once in the log.

    Raises:
        TypeError: When the value is of another type.
    """
    text = "" if value is None else text_of(value)
    if text is None:
        raise TypeError(f"a {type(value).__name__} has no pseudonym: give text, bytes, a number or a UUID")
    return _pseudonyms(key).of(text)


def sanitize_attributes(
    attrs: Mapping[str, Any], *, full: bool = False, key: str | bytes | None = None
) -> dict[str, Any]:
    """Return data without what is private; the data itself is not changed.

    Keys that name a secret go, with what stands under them, at any depth: `password`, `api_key`; `safe_key` and
    `token_count` stay. A user's id becomes a pseudonym: `user_id` goes, and `user_id_hash` takes its place.

    Args:
        attrs: The data. Maps, lists, tuples and sets in it are looked into; all other values are kept as they are.
        full: Whether texts are looked into too: e-mail addresses, phone and card numbers, credentials become
            `[redacted:email]` and so on.
        key: As for `hash_sensitive`.
    """
    strategies = {**read_rules(""), KEY: DROP}
    return Sanitizer(Rules((), (), strategies, full, _pseudonyms(key))).map(attrs)


def _pseudonyms(key: str | bytes | None) -> Pseudonyms:
    if key is not None:
        return Pseudonyms(key)
    rules = hub.rules
    configured = rules.pseudonyms if isinstance(rules, Rules) else None
    return ProcessPseudonyms() if configured is None else configured


def _unheard(_path: Path, _kind: str, _strategy: str, _length: int) -> None:
    pass


class Sanitizer:
    """A walk through data of usual types, which are kept: it makes new maps, lists, tuples and sets.

    Args:
        rules: What is done.
        note: Is told of each thing found.
    """

    def __init__(self, rules: Rules, note: Note = _unheard) -> None:
        self._rules = rules
        self._note = note
        self._on_the_way: set[int] = set()

    def map(self, data: Mapping[Any, Any], path: Path = ()) -> dict[Any, Any]:
        """Return a map without what is private."""
        made: dict[Any, Any] = {}
        rules = self._rules
        for key, value in data.items():
            if not isinstance(key, str) or not rules(key):
                item = self.value(value, (*path, key if type(key) is str else type(key).__name__))
                if item is not DROPPED:
                    made[key] = item
                continue
            verdict = rules.verdict(key)
            if verdict.kind == KEY and isinstance(value, str) and value == REDACTED and not verdict.found:
                made[key] = value  # it was redacted before
                continue
            here = (*path, verdict.name if verdict.found else key)
            for kind in verdict.found:
                self._note(here, kind, rules.strategies[kind], 0)
            if verdict.kind:
                self._note(here, verdict.kind, verdict.strategy, len(value) if isinstance(value, str) else 0)
            if verdict.strategy == DROP:
                continue
            item = rules.replacement(verdict, value) if verdict.kind else self.value(value, here)
            if item is not DROPPED:
                made[verdict.name if verdict.name == key else _free(verdict.name, made, data)] = item
        return made

    def value(self, value: Any, path: Path = ()) -> Any:
        """Return a value without what is private; `DROPPED` when nothing is to be left of it."""
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, (bytes, bytearray)):
            text = value.decode("utf-8", "surrogateescape")
            clean = self._text(text, path)
            return value if clean is text else clean if clean is DROPPED else clean.encode("utf-8", "surrogateescape")
        if not isinstance(value, (Mapping, list, tuple, Set)):
            return value
        if len(path) >= MAX_DEPTH or id(value) in self._on_the_way:
            self._note(path, TOO_DEEP, REDACT, 0)
            return REDACTED
        self._on_the_way.add(id(value))
        try:
            if isinstance(value, Mapping):
                return self.map(value, path)
            made = [self.value(item, (*path, str(number))) for number, item in enumerate(value)]
            made = [item for item in made if item is not DROPPED]
            return made if isinstance(value, list) else tuple(made) if isinstance(value, tuple) else _set_of(made)
        finally:
            self._on_the_way.discard(id(value))

    def _text(self, text: str, path: Path) -> Any:
        scanner = self._rules.scanner
        if scanner is None:
            return text
        redacted = scanner.redact(text)
        if redacted is None:
            return text
        for start, end, kind in scanner.spans(text):
            self._note(path, kind, self._rules.strategies[kind], end - start)
        return DROPPED if redacted.text is None else redacted.text


def _free(name: str, made: Mapping[Any, Any], data: Mapping[Any, Any]) -> str:
    """A name that is not taken, by what is there or by what will be."""
    while name in made or name in data:
        name += "'"
    return name


def _set_of(items: list[Any]) -> Any:
    try:
        return set(items)
    except TypeError:  # a frozen set in it has become a set, for one
        return items
