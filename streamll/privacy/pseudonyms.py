"""Keyed pseudonyms: the same value gets the same 16 hex digits, from which nobody without the key gets back to it.

What belongs here: the function from key and value to pseudonym. What does not: where a key comes from (process_key.py).

It is BLAKE2b with a key (RFC 7693, section 2.9), 64 bits of it. A plain hash would be no protection: who knows what user
ids look like tries them all.
"""

from __future__ import annotations

import hashlib

DIGITS = 16
"""Hex digits of a pseudonym: among a million values, two get the same with a probability of 3 in 100 million."""

_LONGEST_KEY = 64
"""Bytes that BLAKE2b takes as a key."""


class Pseudonyms:
    """Makes pseudonyms under one key.

    Args:
        key: Bytes, or text of any length. Who has it can try values, so it is to be kept as a secret.
    """

    def __init__(self, key: str | bytes) -> None:
        raw = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
        if len(raw) > _LONGEST_KEY:
            raw = hashlib.blake2b(raw).digest()
        self._begun = hashlib.blake2b(digest_size=DIGITS // 2, key=raw, person=b"streamll:1")

    def of(self, text: str) -> str:
        """Return the pseudonym of a text."""
        keyed = self._begun.copy()
        keyed.update(text.encode("utf-8", "surrogatepass"))
        return keyed.hexdigest()
