"""Show what redaction would find in a file: events as FileSink writes them, any JSON Lines, or plain text.

For each thing found: the line, where in the data it stands, its kind, and what would be done to it; never the thing itself.
--write OUT makes a copy without it; the file stays as it is. docs/privacy.md says what is looked for.

The exit code is 0 when nothing is found, 1 when something is, 2 when the file cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from streamll.cli.output import heard, write_line
from streamll.errors import ConfigurationError
from streamll.ids import has_our_shape
from streamll.privacy.kinds import HASH, REDACT, STRATEGIES, read_rules
from streamll.privacy.process_key import ProcessPseudonyms
from streamll.privacy.rules import Rules
from streamll.privacy.sanitize import DROPPED, Sanitizer
from streamll.privacy.sanitize import Path as Keys
from streamll.views.line import neutral, neutral_json

_NOTHING_FOUND, _FOUND = 0, 1

_IDS = ("event_id", "execution_id", "span_id", "parent_span_id", "producer")
_LONGEST_KEY = 500
"""Lines that a private key may have, in a file that is no JSON."""


class Finding(NamedTuple):
    """Something that was found: on which line (from 1), where in its data, its kind, what is done, and its length."""

    line: int
    path: Keys
    kind: str
    strategy: str
    length: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("file", metavar="FILE", help="a file, or - for standard input")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--full", action="store_true", help="look at keys, user ids and texts, as redact=full (default)")
    what.add_argument("--keys", action="store_true", help="look at keys only, as redact=keys")
    parser.add_argument("--also", default="", metavar="KEYS", help="further sensitive keys, separated by commas")
    parser.add_argument("--keep", default="", metavar="KEYS", help="keys that are never sensitive")
    parser.add_argument("--strategy", default=REDACT, choices=STRATEGIES, help="what is done, as redact_strategy")
    parser.add_argument(
        "--rules", default="", metavar="RULES", help="exceptions, as redact_rules: email=hash,phone=keep"
    )
    parser.add_argument("--write", metavar="OUT", help="write the file, without what is found, to OUT")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each thing found")


def run(arguments: argparse.Namespace) -> int:
    """Look through the file, and write the copy, if there is to be one."""
    findings: list[Finding] = []
    counts: Counter[str] = Counter()
    scrubber = Scrubber(_rules(arguments), findings.append)
    lines = found_in = 0
    with heard("streamll"), _opened(arguments.file) as source, _copy(arguments.write, arguments.file) as write:
        for number, line in _records(source):
            write(scrubber.line(number, line))
            lines, found_in = lines + max(line.count(b"\n"), 1), found_in + bool(findings)
            for finding in findings:
                counts[finding.kind] += 1
                write_line(_as_json(finding) if arguments.json else _as_text(finding))
            findings.clear()
    if not arguments.json:
        write_line(_summary(lines, found_in, counts))
    return _FOUND if counts else _NOTHING_FOUND


class Scrubber:
    """Looks through lines, each a JSON value or text.

    Args:
        rules: What is done.
        tell: Is told of each thing found.
    """

    def __init__(self, rules: Rules, tell: Callable[[Finding], None]) -> None:
        self._tell = tell
        self._sanitizer = Sanitizer(rules, self._note)
        self._labels = Sanitizer(Rules(texts=True))
        self._number = 0
        self._changed = False

    def line(self, number: int, line: bytes) -> bytes:
        """Return a line without what is found in it; the very same where nothing is."""
        self._number, self._changed = number, False
        body = line.rstrip(b"\r\n")
        text = body.decode("utf-8", "surrogateescape")
        scrubbed = self._data(text) if text[:1] in ("{", "[") else self._text(text)
        return line if not self._changed else scrubbed + line[len(body) :]

    def _data(self, text: str) -> bytes:
        try:
            data = json.loads(text, object_pairs_hook=_map_of)
        except (ValueError, RecursionError):
            return self._text(text)
        ids = {}
        if isinstance(data, dict) and "event_type" in data:
            ids = {name: data[name] for name in _IDS if isinstance(data.get(name), str) and has_our_shape(data[name])}
        made = self._sanitizer.value({**data, **dict.fromkeys(ids, "")} if ids else data)
        if not self._changed:
            return b""
        if ids:
            made = {**made, **ids}
        try:
            return json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # a lone surrogate that JSON had as an escape
            return json.dumps(made, separators=(",", ":")).encode()

    def _text(self, text: str) -> bytes:
        made = self._sanitizer.value(text)
        return b"" if made is DROPPED else str(made).encode("utf-8", "surrogateescape")

    def _note(self, path: Keys, kind: str, strategy: str, length: int) -> None:
        self._changed = True
        # A key that is no secret's name may itself be somebody's address, and it may be that only keys are looked at.
        shown = tuple([str(self._labels.value(part)) for part in path])
        self._tell(Finding(self._number, shown, kind, strategy, length))


def _map_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one that has a key twice is looked at as text, or the first value would not be seen."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError
    return made


def _rules(arguments: argparse.Namespace) -> Rules:
    texts = not arguments.keys
    try:
        strategies = read_rules(arguments.rules, arguments.strategy, texts)
    except ValueError as error:
        raise ConfigurationError(f"--rules: {error}") from None
    also, keep = (tuple(names.split(",")) for names in (arguments.also, arguments.keep))
    # Where nothing is written, nobody sees a pseudonym, and no key for them is asked for.
    pseudonyms = ProcessPseudonyms() if arguments.write and HASH in strategies.values() else None
    return Rules(also, keep, strategies, texts, pseudonyms)


def _records(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, with their numbers; a private key in a text is one, though it has many."""
    number = 1
    key = b""
    lines_of_key = 0
    for line in source:
        if not key and not _begins_key(line):
            yield number, line
            number += 1
            continue
        key += line
        lines_of_key += 1
        if b"-----END " in line or lines_of_key >= _LONGEST_KEY:
            yield number, key
            number, key, lines_of_key = number + lines_of_key, b"", 0
    if key:
        yield number, key


def _begins_key(line: bytes) -> bool:
    return b"PRIVATE KEY" in line and b"-----BEGIN " in line and line[:1] not in (b"{", b"[")


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    with _said(name):
        source = Path(name).open("rb")  # noqa: SIM115  # it is closed below; errors of what is done with it are others
    with source:
        yield source


@contextmanager
def _copy(name: str | None, original: str) -> Iterator[Callable[[bytes], Any]]:
    """Where the copy goes: it has its name only when it is whole, and nobody else may read it."""
    if name is None:
        yield len
        return
    copy, place = Path(name), f"--write {name}"
    with _said(place):
        if copy.exists() and Path(original).exists() and copy.samefile(original):
            raise ConfigurationError(f"{place}: that is the file itself")
        handle, temporary = tempfile.mkstemp(prefix=".scrub-", dir=copy.absolute().parent)

    try:
        with open(handle, "wb") as out:  # noqa: PTH123  # it is open already

            def write(data: bytes) -> None:
                with _said(place):
                    out.write(data)

            yield write
        with _said(place):
            Path(temporary).replace(copy)
    except BaseException:
        Path(temporary).unlink()
        raise


@contextmanager
def _said(place: str) -> Iterator[None]:
    """What the operating system has against a file, as words."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{place}: {error.strerror}") from None


def _as_text(finding: Finding) -> str:
    where = ".".join(finding.path) or "text"
    length = f", {finding.length:,} characters" if finding.length else ""
    return neutral(f"line {finding.line:,}: {where}: {finding.kind}{length} -> {finding.strategy}")


def _as_json(finding: Finding) -> str:
    fields = {**finding._asdict(), "path": list(finding.path)}
    return neutral_json(json.dumps(fields, ensure_ascii=False))


def _summary(lines: int, found_in: int, counts: Counter[str]) -> str:
    if not counts:
        return f"nothing found in {_lines(lines)}"
    kinds: Iterable[str] = (f"{kind} {count:,}" for kind, count in sorted(counts.items()))
    return f"found in {found_in:,} of {_lines(lines)}: {', '.join(kinds)}"


def _lines(count: int) -> str:
    return f"{count:,} line{'' if count == 1 else 's'}"
