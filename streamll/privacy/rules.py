"""All that is to be done to an event's data: to values under sensitive keys, to user ids, to what stands in texts.

What belongs here: the decision about one key and one text under the options of a pipeline, as the walks through data ask
for it. What does not: those walks (values.py, plain.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from streamll.privacy.keys import CACHE_BOUND, KEY_BOUND, REDACTED, REMEMBERED, SensitiveKeys, Verdict, words_of
from streamll.privacy.kinds import DROP, HASH, KEEP, KEY, KINDS, REDACT, USER_ID

if TYPE_CHECKING:
    from streamll.privacy.pseudonyms import Pseudonyms

_USER_IDS = frozenset(
    tuple(term.split())
    for term in (
        "user id,user ids,userid,user uuid,user guid,enduser id,customer id,customerid,member id,patient id,"
        "employee id,subscriber id,visitor id,person id"
    ).split(",")
)
"""What a key ends with that names a person's id; `uid` is one only as a whole key."""
_UID = ("uid",)

_BIGGEST = 1 << 128
_IDS_BOUND = 1000
"""The longest list of ids whose pseudonyms are made one by one."""

DEFAULTS: Mapping[str, str] = {**dict.fromkeys(KINDS, REDACT), USER_ID: KEEP}


def names_user(key: str) -> bool:
    """Return whether the value under a key is a user's id: `user_id`, `userId`, `enduser.id`."""
    words = words_of(key[-128:])
    return words == _UID or words[-2:] in _USER_IDS or words[-1:] in _USER_IDS


class Rules(SensitiveKeys):
    """Decides about keys that name a secret or a user, and about texts.

    Args:
        also, keep: As for `SensitiveKeys`.
        strategies: What is done to each kind, as `kinds.read_rules` returns it.
        texts: Whether texts are looked at too.
        pseudonyms: What is hashed is redacted without them.
    """

    def __init__(
        self,
        also: Iterable[str] = (),
        keep: Iterable[str] = (),
        strategies: Mapping[str, str] = DEFAULTS,
        texts: bool = False,
        pseudonyms: Pseudonyms | None = None,
    ) -> None:
        super().__init__(also, keep)
        self.strategies = strategies
        self.pseudonyms = pseudonyms
        self._verdicts: dict[str, Verdict] = {}
        self._looks_for_secrets = strategies[KEY] != KEEP
        self._looks_for_users = strategies[USER_ID] != KEEP
        if texts:
            from streamll.privacy.scanner import Scanner  # compiles its patterns

            self.scanner = Scanner(strategies, SensitiveKeys(also, keep), pseudonyms)

    def verdict(self, key: str, room: int | None = None) -> Verdict:
        """Return what is to be done with a key and what stands under it, which may be nothing.

        Args:
            key: The key, all of it.
            room: Characters of it that are wanted.
        """
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._find_verdict(key, room)
            if not verdict.found and len(key) <= REMEMBERED:  # what is private in a key is not to be held here
                if len(self._verdicts) >= CACHE_BOUND:
                    self._verdicts.clear()
                self._verdicts[key] = verdict
        return verdict

    def _find_verdict(self, key: str, room: int | None) -> Verdict:
        redacted = None if self.scanner is None else self.scanner.redact(key, room)
        name, found = (key, ()) if redacted is None else redacted
        if name is None:
            return Verdict("", DROP, "", found)
        if self._names_a_secret(key):
            return Verdict(KEY, self.strategies[KEY], name, found)
        if self._names_a_user(key):
            strategy = self.strategies[USER_ID]
            return Verdict(USER_ID, strategy, f"{name}_hash" if strategy == HASH else name, found)
        return Verdict("", "", name, found)

    def replacement(self, verdict: Verdict, value: Any) -> Any:
        """Return what takes the place of a value under such a key: a word, or a pseudonym where it is to be hashed.

        Who is nobody, None or an empty text, stays so.
        """
        if verdict.strategy != HASH or self.pseudonyms is None:
            return REDACTED
        if verdict.kind == KEY:
            text = text_of(value)
            return REDACTED if text is None else f"[{KEY}:{self.pseudonyms.of(text)}]"
        if type(value) in (list, tuple) and len(value) <= _IDS_BOUND:
            return [self._pseudonym(item, self.pseudonyms) for item in value]
        return self._pseudonym(value, self.pseudonyms)

    def _pseudonym(self, value: Any, pseudonyms: Pseudonyms) -> str | None:
        if value is None:
            return None
        text = text_of(value)
        return REDACTED if text is None else text and pseudonyms.of(text)

    def _names_a_secret(self, key: str) -> bool:
        return self._looks_for_secrets and super()._decide(key)

    def _names_a_user(self, key: str) -> bool:
        return self._looks_for_users and names_user(key) and not self.keeps(key)

    def _decide(self, key: str) -> bool:
        if self._names_a_secret(key) or self._names_a_user(key):
            return True
        # Of a very long one it is left to `verdict` how much of it is looked at.
        return self.scanner is not None and (len(key) > KEY_BOUND or self.scanner.finds(key))


def text_of(value: Any) -> str | None:
    """Return what stands for a value: 5 and "5" are the same user; None for what has no such text.

    No code of the value's class is called.
    """
    kind = type(value)
    if issubclass(kind, str):
        return str.__str__(value)
    if kind is bytes:
        return cast("bytes", value).decode("utf-8", "backslashreplace")
    if kind is int:  # a longer number takes long to write, or is refused
        return str(value) if -_BIGGEST < value < _BIGGEST else f"{value:x}"
    if kind is UUID or kind is float or kind is bool or kind is Decimal:
        return str(value)
    return None
