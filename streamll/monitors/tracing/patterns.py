"""Which functions a user means: `pkg.*`, `pkg.mod:Class.method`, `!pkg.internal.*`.

What belongs here: reading patterns and matching names, without looking at any module. What does not: finding functions
(places.py).

A pattern is matched against `module.function` and against the module's name alone; `*` stands for any characters, dots
too. With a colon, what is before it is matched against the module's name, and what is behind it against the function's
qualified name. What a pattern behind a `!` matches is left out, wherever that stands.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

from streamll.errors import ConfigurationError

_MACHINERY = frozenset(
    "_thread _weakrefset abc array ast asyncio atexit bisect builtins codecs collections concurrent contextlib contextvars "
    "copyreg dataclasses encodings enum functools gc importlib inspect io itertools keyword linecache locale logging math "
    "operator os posixpath queue random re reprlib runpy select selectors signal site socket ssl stat string struct sys "
    "threading time token tokenize traceback types typing warnings weakref zipimport msgspec streamll".split()
)
"""Top-level modules that tracing itself runs on, or is. They are never traced."""

_STANDARD = frozenset(sys.stdlib_module_names)

_SHAPE = re.compile(r"[\w.*]+(:[\w.*]+)?")


class _Pattern:
    """One pattern, without its `!`."""

    def __init__(self, text: str) -> None:
        if _SHAPE.fullmatch(text) is None:
            raise ConfigurationError(
                f"auto tracer option patterns: {text!r} is none; such are pkg.*, pkg.mod:Class.method, !pkg.internal.*"
            )
        module, _, function = text.partition(":")
        self._module = _compile(module)
        self._function = _compile(function) if function else None
        self._head, wild, _ = module.partition("*")
        self._whole = not wild
        self._last = text.replace(":", ".").rpartition(".")[2]
        self.package = "" if "*" in module.partition(".")[0] else module.partition(".")[0]
        """The top-level module that it is about; empty when that may be any."""

    def matches(self, module: str, function: str) -> bool:
        if self._function is not None:
            return self._module.fullmatch(module) is not None and self._function.fullmatch(function) is not None
        return self._module.fullmatch(module) is not None or self._module.fullmatch(f"{module}.{function}") is not None

    def may_match(self, module: str) -> bool:
        """Whether it could match any function of a module; that there is none then is no harm."""
        if self._function is not None or self._module.fullmatch(module) is not None:
            return self._module.fullmatch(module) is not None
        name = f"{module}."
        return self._head.startswith(name) or (not self._whole and name.startswith(self._head))

    def spells(self, function: str) -> bool:
        """Whether it names a function by its own name, without `*`."""
        return self._last == function.rpartition(".")[2]


def _compile(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in text.split("*")))


class Patterns:
    """What a user's patterns mean, taken together.

    Args:
        texts: The patterns, at least one of them without `!`.

    Raises:
        ConfigurationError: One cannot be understood, or none says what is wanted.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        given = [text.strip() for text in texts if text.strip()]
        self._wanted = [_Pattern(text) for text in given if not text.startswith("!")]
        self._unwanted = [_Pattern(text[1:]) for text in given if text.startswith("!")]
        if not self._wanted:
            raise ConfigurationError("auto tracer option patterns: must say what is wanted, such as pkg.*")

    def may_want(self, module: str) -> bool:
        """Whether any function of a module could be wanted."""
        return bool(self._about(module))

    def want(self, module: str, function: str) -> bool:
        """Whether a function is wanted.

        Special methods (`__init__`) are wanted when they are spelt out, since they run where nobody looks for code; and
        modules of the standard library when a pattern names the package, but none that tracing itself runs on.

        Args:
            module: The module's name.
            function: Its qualified name in there: `Class.method`.
        """
        name = function.rpartition(".")[2]
        special = name.startswith("__") and name.endswith("__")
        return any(
            each.matches(module, function) and (not special or each.spells(name)) for each in self._about(module)
        ) and not any(each.matches(module, function) for each in self._unwanted)

    def _about(self, module: str) -> list[_Pattern]:
        package = module.partition(".")[0]
        if package in _MACHINERY:
            return []
        return [
            each
            for each in self._wanted
            if each.may_match(module) and (package not in _STANDARD or each.package == package)
        ]
