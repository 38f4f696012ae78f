"""A wall clock that jumps, for a child process that may end with it."""

from __future__ import annotations

import sys
import time
from typing import Any

_time, _time_ns = time.time, time.time_ns
_jumped = 0.0


def _shifted() -> float:
    return _time() + _jumped


def _shifted_ns() -> int:
    return _time_ns() + int(_jumped * 1e9)


def jump(seconds: float) -> None:
    """Set the clock of this process forward, or back, as an administrator would; the monotonic clock goes on."""
    global _jumped
    _jumped += seconds
    instead: dict[Any, Any] = {_time: _shifted, _time_ns: _shifted_ns}
    for name, module in list(sys.modules.items()):
        if name == "time" or name.partition(".")[0] in ("streamll", "redis", "pika"):
            for attribute, value in list(vars(module).items()):
                if value is _time or value is _time_ns:
                    setattr(module, attribute, instead[value])
