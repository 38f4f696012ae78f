"""Which keys name a secret.

What belongs here: the decision about a key, and what takes the place of the value under it when nothing else is wished.
What does not: walking through an event's data, which values.py does in the same pass that makes the data encodable; what
is done by other wishes (rules.py).

A key is split into words at punctuation and at camelCase humps: `dbPassword`, `DB-PASSWORD` and `db.password` are all
the words `db password`. It is sensitive when a sensitive term stands in it as whole words and what follows the term
does not turn it into a measure of the secret: `access_token` and `password_old` are, `token_count`, `tokenizer` and
`safe_key` are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from streamll.privacy.kinds import KEY, REDACT, REPLACED

if TYPE_CHECKING:
    from streamll.privacy.scanner import Scanner

REDACTED = "[redacted]"

SENSITIVE_TERMS = (
    "password",
    "passwords",
    "pass word",
    "passwd",
    "pwd",
    "passphrase",
    "secret",
    "secrets",
    "token",
    "auth",
    "authorization",
    "authentication",
    "api key",
    "apikey",
    "access key",
    "accesskey",
    "private key",
    "privatekey",
    "secret key",
    "secretkey",
    "signing key",
    "encryption key",
    "credential",
    "credentials",
    "cookie",
    "cookies",
    "set cookie",
    "session id",
    "sessionid",
    "csrf",
    "csrftoken",
    "xsrf",
    "jwt",
    "bearer",
    "connection string",
    "ssn",
    "credit card",
    "creditcard",
    "card number",
    "cvv",
    "cvc",
)
"""Terms that make a key sensitive, as lower-case words; the plural of `token` is left out, since it counts text."""

# Words behind a term that say that the value measures or describes the secret, and is none.
_DESCRIBING = frozenset(
    "age budget bytes cost count counts enabled expired expires expiry index length len limit limits max method min "
    "name present rate ratio required size sizes status total totals ttl type types usage used valid".split()
)

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_A-Za-z]+")
# Where an acronym stands before a word in small letters, as in `DBpassword`, the hump is not where the word starts.
_WORD_AFTER_ACRONYM = re.compile(r"[A-Z]{2,}|[A-Z]?[a-z]+|[A-Z]|[0-9]+|[^\W\d_A-Za-z]+")

KEY_BOUND = 1024
"""The characters of a key that are looked at; what is longer is text rather than a name."""

# A program has a few thousand different keys at most; one that makes keys up must not make this grow without end.
CACHE_BOUND = 4096
REMEMBERED = 256


def words_of(key: str) -> tuple[str, ...]:
    """Split a key into lower-case words: `X-Api-Key`, `xApiKey` and `x_api_key` give `("x", "api", "key")`."""
    return _split(_WORD, key)


def _split(pattern: re.Pattern[str], key: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in pattern.findall(key))


class Verdict(NamedTuple):
    """What is to be done with a key and what stands under it.

    Attributes:
        kind: "key", "user_id", or empty when only the name is to be changed.
        strategy: What is done to the value, as in kinds.STRATEGIES; also for an empty kind, where only "drop" says
            something.
        name: The key as it may be shown.
        found: What was found in the key itself, by kind, each as often as it was.
    """

    kind: str
    strategy: str
    name: str
    found: tuple[str, ...] = ()


def _remember(found: set[str], text: str) -> None:
    """Put a short text into a set that is emptied when it has become large."""
    if len(found) >= CACHE_BOUND:
        found.clear()
    if len(text) <= REMEMBERED:
        found.add(text)


class SensitiveKeys:
    """Decides whether the value under a key is to be redacted.

    Args:
        also: Further terms, as keys in any spelling.
        keep: Keys that are never sensitive, in any spelling, whole keys only.
    """

    def __init__(self, also: Iterable[str] = (), keep: Iterable[str] = ()) -> None:
        terms = {tuple(term.split()) for term in SENSITIVE_TERMS}
        self._terms = frozenset(terms | {words for term in also if (words := words_of(term))})
        self._longest = max(len(term) for term in self._terms)
        self._keep = frozenset(words_of(key) for key in keep)
        self.harmless: set[str] = set()
        """Keys found to be no secret's, for callers on the hot path; may be emptied at any time."""
        self._secret: set[str] = set()
        self.scanner: Scanner | None = None
        """Looks at texts; None when only keys are looked at."""

    def __call__(self, key: str) -> bool:
        """Return whether the value under `key` is sensitive."""
        if key in self.harmless:
            return False
        if key in self._secret:
            return True
        verdict = self._decide(key)
        _remember(self._secret if verdict else self.harmless, key)
        return verdict

    def keeps(self, key: str) -> bool:
        """Return whether a key was said never to be sensitive."""
        return bool(self._keep) and words_of(key[:KEY_BOUND]) in self._keep

    def verdict(self, key: str, room: int | None = None) -> Verdict:
        """Return what is to be done with a key that was found to be sensitive."""
        return Verdict(KEY, REDACT, key)

    def replacement(self, verdict: Verdict, value: Any) -> Any:
        """Return what takes the place of a value that stands under a sensitive key; it is of usual types."""
        return REDACTED

    def _decide(self, key: str) -> bool:
        key = key[:KEY_BOUND]
        if "[" in key:
            key = REPLACED.sub(" ", key)  # a kind may be called a token, and name no secret
        words = words_of(key)
        if words in self._keep:
            return False
        return self._names_secret(words) or self._names_secret(_split(_WORD_AFTER_ACRONYM, key))

    def _names_secret(self, words: tuple[str, ...]) -> bool:
        for start in range(len(words)):
            for end in range(start + 1, min(start + self._longest, len(words)) + 1):
                if words[start:end] in self._terms and not _DESCRIBING.intersection(words[end : end + 1]):
                    return True
        return False
