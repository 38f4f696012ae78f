"""One line of text for one event: what TerminalSink and `streamll tail` show.

What belongs here: the line, and making text harmless to a terminal. What does not: writing it anywhere.

Events may come from anybody who can write into a stream. So no text of an event reaches the terminal as it is: what
could move the cursor, change colours, forge a further line or turn the reading direction is shown as an escape.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import msgspec

from streamll.codec import format_timestamp
from streamll.models import StreamllEvent
from streamll.views.metric_words import METRIC, describe_metric
from streamll.views.notes import describe

LINE_LIMIT = 1000
"""Characters of a line, unless told otherwise."""

# C0, DEL and C1 (one of which begins a control sequence in some terminals); line and paragraph separators; marks that
# turn the reading direction; what takes no place, so that two texts that differ look the same: soft hyphen, joiners, the
# byte-order mark, annotations, tags; surrogates, which no terminal can be sent.
HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Every character that a terminal would obey, or that hides what it shows."""
_PLAIN_WORD = re.compile(r"[^\s\"'=,\[\]{}]{1,200}")
_SHOWN_OF_EXECUTION = 8

_RESET = "\x1b[0m"
_DIM, _BOLD, _CYAN = "\x1b[2m", "\x1b[1m", "\x1b[36m"
_LEVELS = {
    "debug": _DIM,
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[1;31m",
}


def neutral(text: str) -> str:
    r"""Return text in which every character that a terminal would obey is an escape: ESC becomes `\x1b`."""
    return HARMFUL.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    short = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r"}.get(code)
    if short:
        return short
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x1_0000 else f"\\U{code:08x}"


def neutral_json(text: str) -> str:
    """Return JSON in which every such character is an escape, so that it says the same."""
    return HARMFUL.sub(lambda match: json.dumps(match[0])[1:-1].replace("\x7f", "\\u007f"), text)


def format_event(
    event: StreamllEvent,
    *,
    color: bool = False,
    dated: bool = False,
    limit: int = LINE_LIMIT,
    producer: str = "",
) -> str:
    """Return an event as one line, without its end.

    Time of day (local), level, event type, operation (or function), duration, data, tags, and the beginning of the
    execution's id: what is empty is left out. A sink's own note is put into words instead, and so are a metric's numbers.

    Args:
        event: The event.
        color: Whether to colour it with ANSI escapes.
        dated: Whether to put the date before the time.
        limit: The most characters to show, escapes for colour not counted; a longer line ends in an ellipsis.
        producer: Whose note it is, for a note.
    """
    shown: list[str] = []
    left = limit
    for text, style in _pieces(event, dated, producer):
        room = left - (1 if shown else 0)
        text = neutral(text[: max(0, room) + 1])  # which makes nothing shorter, and may be asked of a very long text
        if len(text) > room:
            text = text[: max(0, room - 1)] + "…"
            left = -1
        else:
            left = room - len(text)
        shown.append(f"{style}{text}{_RESET}" if color and style else text)
        if left < 0:
            break
    return " ".join(shown)


def _pieces(event: StreamllEvent, dated: bool, producer: str) -> Iterator[tuple[str, str]]:
    """The parts of a line, each with its style, before they are made harmless."""
    level_style = _LEVELS.get(event.level, "")
    yield _clock(event.timestamp, dated), _DIM
    if event.level:
        yield f"{event.level.upper():<7}", level_style
    note = describe(event, producer)
    if note is not None:
        yield note, level_style or _BOLD
        return
    yield event.event_type, level_style or _BOLD
    what = event.operation or ".".join(name for name in (event.module_name, event.method_name) if name)
    if what:
        yield what, _CYAN
    series = describe_metric(event.data, _value) if event.event_type == METRIC else None
    if series is not None:
        yield from ((text, "") for text in series)
    for name, value in event.data.items() if series is None else ():
        if name == "duration_ns" and type(value) is int and value >= 0:
            yield f"({_duration(value)})", ""
        elif name == "error" and isinstance(value, dict) and "type" in value:
            yield f"{value['type']}: {value.get('message', '')}", _LEVELS["error"]
        else:
            yield f"{name}={_value(value)}", ""
    if isinstance(event.tags, dict):
        for name, value in event.tags.items():
            yield f"#{name}={_value(value)}", _DIM
    else:
        for tag in event.tags:
            yield f"#{_value(tag)}", _DIM
    if event.execution_id:
        yield f"[{event.execution_id[:_SHOWN_OF_EXECUTION]}]", _DIM


def _clock(timestamp: int, dated: bool) -> str:
    seconds, rest = divmod(timestamp, 1_000_000_000)
    try:
        # What the clock of whoever looks at it shows.
        moment = datetime.fromtimestamp(seconds, timezone.utc).astimezone()
    except (OverflowError, ValueError, OSError):
        return format_timestamp(timestamp)
    return f"{moment:{'%Y-%m-%d ' if dated else ''}%H:%M:%S}.{rest // 1_000_000:03d}"


def _duration(ns: int) -> str:
    for size, unit in ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs")):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns < 1000 * size else f"{ns // size:,} {unit}"
    return f"{ns} ns"


def _value(value: Any) -> str:
    if isinstance(value, str) and _PLAIN_WORD.fullmatch(value):
        return value
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):  # surrogates, keys that JSON does not know, depth
        return f'"{value}"' if isinstance(value, str) else f"<{type(value).__name__}>"
