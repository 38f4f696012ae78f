"""What commands print: without credentials, and harmless to a terminal."""

from __future__ import annotations

import base64
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from streamll import codec
from streamll.models import StreamllEvent
from streamll.options import MIB
from streamll.values import clean
from streamll.views.line import format_event, neutral, neutral_json

if TYPE_CHECKING:
    from streamll.consumers import Received

# Up to the last `@` before white space, since a password may have been written without its escapes; also where the
# scheme was forgotten.
_LOGIN = re.compile(r"(://)[^\s'\"]*@|[^\s'\"/:]*:(?!//)[^\s'\"]*@")
_SECRET_OPTION = re.compile(r"([?&][a-z_]*password=)[^&\s'\"]*", re.IGNORECASE)
_SHOWN_OPTIONS = frozenset(
    "stream group exchange queue queue_type routing_key binding_key dead_letter_stream db".split()
)
_SHOWN_OF_UNDECODABLE = 80
_TIDIED_BYTES = 64 * MIB


def conceal(text: str) -> str:
    """Return text in which no URL shows its user, its password, or a password among its options."""
    return _SECRET_OPTION.sub(r"\1***", _LOGIN.sub(r"\1***@", text))


def conceal_url(url: str) -> str:
    """Return a text that is a URL and nothing else, without its login, and without what options that may be secret say.

    Where such a text ends is known, so a password is found however it is written: it goes to the last `@`.
    """
    scheme, separator, rest = url.rpartition("://") if url.count("://") == 1 else ("", "", url)
    _, at, rest = rest.rpartition("@")
    rest, question, query = rest.partition("?")
    options = (option.partition("=") for option in query.split("&"))
    shown = "&".join(
        f"{name}{equals}{value if name in _SHOWN_OPTIONS or not value else '***'}" for name, equals, value in options
    )
    return conceal(f"{scheme}{separator}{'***@' if at else ''}{rest}{question}{shown}")


def write_line(text: str) -> None:
    """Print a line at once; what the encoding of the output cannot say becomes an escape."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Print a line on standard error, as our own words."""
    print(f"streamll: {neutral(conceal(text))}", file=sys.stderr)


class _Words(logging.Formatter):
    """Log records in our own words' form: harmless, and without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        return f"streamll: {neutral(conceal(super().format(record)))}"


@contextmanager
def heard(
    name: str, level: int = logging.WARNING, worth_a_word: Callable[[logging.LogRecord], bool] = lambda record: True
) -> Iterator[None]:
    """Show on standard error what a logger of ours, and those below it, have to say; and nothing of what pika has.

    Args:
        name: The logger.
        level: From which level on.
        worth_a_word: Which of its records to show.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Words())
    handler.addFilter(worth_a_word)
    ours, pikas = logging.getLogger(name), logging.getLogger("pika")
    before = (ours.level, ours.propagate, pikas.level)
    ours.addHandler(handler)
    ours.setLevel(level)
    ours.propagate = False
    pikas.setLevel(logging.CRITICAL)  # it says the same at length, and more than once
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before[0])
        ours.propagate = before[1]
        pikas.setLevel(before[2])


@contextmanager
def consumers_heard(may_be_missing: str = "") -> Iterator[None]:
    """Show on standard error when a connection is lost and found again.

    Args:
        may_be_missing: A source, as its consumer shows it, of which it is not worth a word that it does not exist.
    """

    def worth_a_word(record: logging.LogRecord) -> bool:
        about = record.args[0] if isinstance(record.args, tuple) and record.args else ""
        return about != may_be_missing or "does not exist" not in record.msg

    with heard("streamll.consumers", logging.INFO, worth_a_word):
        yield


def takes_color(environ: Mapping[str, str]) -> bool:
    """Whether standard output is a terminal that shows colours, and nobody asked for none (NO_COLOR)."""
    return sys.stdout.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def as_text(item: Received, *, color: bool, dated: bool) -> str:
    """Return an item as a line for people."""
    if item.event is None:
        shown, more = item.payload[:_SHOWN_OF_UNDECODABLE], len(item.payload) - _SHOWN_OF_UNDECODABLE
        rest = f" and {more:,} bytes more" if more > 0 else ""
        return neutral(f"undecodable entry at {item.position}: {item.error}: {shown!r}{rest}")
    line = format_event(item.event, color=color, dated=dated, producer=item.producer)
    return f"{line} (dead letter: {neutral(item.dead_letter)})" if item.dead_letter else line


def as_json(item: Received) -> str:
    """Return an item as one line of JSON: the event with `producer`, `seq` and `position`, as FileConsumer reads it too.

    An undecodable entry has `undecodable` (why) and `payload` (Base64) instead of the event.
    """
    labels: dict[str, Any] = {"producer": item.producer, "seq": item.seq} if item.producer else {}
    if item.dead_letter:
        labels["reason"] = item.dead_letter
    labels["position"] = item.position
    if item.event is None:
        text = json.dumps({"undecodable": item.error, "payload": base64.b64encode(item.payload).decode(), **labels})
    else:
        text = _event_as_json(item.event, labels)
    return neutral_json(text)


def _event_as_json(event: StreamllEvent, labels: dict[str, Any]) -> str:
    labelled = msgspec.structs.replace(event, extra={**event.extra, **labels})
    try:
        return codec.to_json(labelled).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        # MessagePack can say more than JSON: keys that are no strings, types of its own, any depth.
        parts = ("data", "tags", "resource", "extra")
        tidied = {name: clean(getattr(labelled, name), None, _TIDIED_BYTES).value for name in parts}
        return codec.to_json(msgspec.structs.replace(labelled, **tidied)).decode()
