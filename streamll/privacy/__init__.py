"""Privacy: which keys and which texts of an event's data may not leave the process, and what stands in their place.

What belongs here: decisions about keys and texts, and the functions for an application's own use. What does not: the walk
through an event's data (values.py, plain.py), and options (options.py).

`detect_email`, `detect_phone`, `hash_sensitive` and `sanitize_attributes` are imported when they are first used: the
patterns cost milliseconds to compile, which who redacts by keys only need not pay.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from streamll.privacy.keys import REDACTED, SENSITIVE_TERMS, SensitiveKeys, words_of

if TYPE_CHECKING:
    from streamll.privacy.sanitize import detect_email, detect_phone, hash_sensitive, sanitize_attributes

__all__ = [
    "REDACTED",
    "SENSITIVE_TERMS",
    "SensitiveKeys",
    "detect_email",
    "detect_phone",
    "hash_sensitive",
    "sanitize_attributes",
    "words_of",
]

if not TYPE_CHECKING:  # pragma: no branch  # with it in sight, a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module("streamll.privacy.sanitize"), name)
        globals()[name] = value
        return value
