"""The kinds of things that are found, and what may be done to them: words that options, counters and reports share.

What belongs here: names, and reading them from an option. What does not: how a kind is found (patterns.py, numbers.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

KEY, USER_ID = "key", "user_id"
TEXT_KINDS = (
    "private_key",
    "url_credentials",
    "credential",
    "jwt",
    "aws_key",
    "github_token",
    "slack_token",
    "openai_key",
    "google_key",
    "stripe_key",
    "vendor_token",
    "email",
    "iban",
    "card",
    "phone",
)
"""What is looked for in texts; where two overlap, all of both is taken for the one that stands first here."""

KINDS = (KEY, USER_ID, *TEXT_KINDS)

REDACT, HASH, DROP, TRUNCATE = STRATEGIES = ("redact", "hash", "drop", "truncate")
"""What may be done to what is found.

redact: a word takes its place. hash: a keyed pseudonym does, so that what is equal stays so. drop: the value it stands in
goes, with its key. truncate: what is left is what says nothing alone, such as a card's last four digits; never anything of
a secret.
"""
MARGIN = 4096
"""How many characters behind a cut are looked at, so that what stands astride it is seen whole."""

BETWEEN = "\n\0\n"
"""What keeps texts apart that are searched as one: no pattern goes across it, and lines begin and end there."""

REPLACED = re.compile(r"\[(?:redacted:[a-z_]+|[a-z_]+:[0-9a-f]{16}|[a-z_]+…)\]")
"""What takes the place of what was found in a text, and is not to be found itself."""

KEEP = "keep"
"""Not looked for."""


def read_rules(text: str, strategy: str = REDACT, texts: bool = True) -> Mapping[str, str]:
    """Return what is done to each kind.

    Args:
        text: Exceptions, as `email=hash, phone=keep`.
        strategy: What is done to all others but user ids, which become pseudonyms.
        texts: Whether texts are looked at; where they are not, user ids are kept too, unless they are named.

    Raises:
        ValueError: When there is no such kind or strategy, or the kind is looked for in texts only; says which.
    """
    strategies = {**dict.fromkeys(KINDS, strategy), USER_ID: HASH if texts else KEEP}
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, _, word = (side.strip().lower() for side in part.partition("="))
        if kind not in strategies:
            raise ValueError(f"there is no kind {kind[:40]!r}; there are: {', '.join(KINDS)}")
        if word not in (*STRATEGIES, KEEP):
            raise ValueError(f"{kind} may be {', '.join(STRATEGIES)} or {KEEP}, not {word[:40]!r}")
        if kind in TEXT_KINDS and not texts:
            raise ValueError(f"{kind} is looked for with redact=full only")
        strategies[kind] = word
    return strategies
