"""Bring what did not get where it belonged there now: dead letters after a fix, and what dead processes left on disk.

Dead letters: WHAT is the URL of the sink (redis://host/0?stream=app, amqp://host/?exchange=app, file:///path or the path
of a file), or names them directly (?stream=app:dead-letter, ?queue=app.dead-letter, a path that ends in
.dead-letter.jsonl). Each goes back to where it belonged, without its reason. What is rejected again stays.

A spool: WHAT is the folder (spool_dir). What dead processes left in it is delivered to where it was going; where that
takes a password, by the sink in STREAMLL_SINKS that has the same destination. Living processes are left alone.

Either way an event keeps its producer and its number. The exit code is 0 when everything that was asked for has moved,
1 when some of it stayed, 2 when it could not be done.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from streamll.cli.interrupt import postponed_interruptions
from streamll.cli.output import conceal, heard, say, write_line
from streamll.errors import ConfigurationError, TransportError
from streamll.registry import urls_in
from streamll.replay.base import Redrive, Selection, Tally, survey
from streamll.replay.places import FilePlace, place_of
from streamll.replay.spool import Delivery, Sinks, deliver, open_orphans
from streamll.runtime.spool import AdoptedJournal
from streamll.sinks.base import Sink
from streamll.views.line import neutral

MOVED, STAYED, NOT_DONE = 0, 1, 2

_ENDS_SOON = "streamll: ends after the events under way; Ctrl-C again ends it at once"
_REASONS_SHOWN = 20
_PROGRESS_INTERVAL = 2.0
_DAY = 24 * 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("what", metavar="WHAT", help="a sink's URL, that of its dead letters, or the folder of a spool")
    parser.add_argument("--to", default="", metavar="URL", help="a sink's URL, to bring them there instead")
    parser.add_argument("--limit", type=_positive, metavar="N", help="of dead letters: as many as that, at most")
    parser.add_argument(
        "--reason", default="", metavar="TEXT", help="of dead letters: only those whose reason has this in it"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would move, and move nothing")


def run(arguments: argparse.Namespace) -> int:
    """Bring things where they belong."""
    is_path = "://" not in arguments.what
    with heard("streamll"), postponed_interruptions(_ENDS_SOON, terminations=True) as stop:
        if is_path and Path(arguments.what).is_dir():
            if arguments.reason or arguments.limit is not None:
                raise ConfigurationError("replay: --limit and --reason choose among dead letters; a spool has none")
            code = _replay(arguments, stop)
        else:
            code = _redrive(arguments, stop)
        if stop():
            raise KeyboardInterrupt
    return code


# Dead letters


def _redrive(arguments: argparse.Namespace, stop: Callable[[], bool]) -> int:
    place = place_of(arguments.what)
    destination = place_of(arguments.to).destination(place) if arguments.to else place.home()
    if isinstance(place, FilePlace) and not place.exists():
        raise ConfigurationError(f"replay: {arguments.what}: there is neither a file nor a spool of that name")
    source = place.dead_letters(look=arguments.dry_run)
    selection = Selection(arguments.reason, arguments.limit)
    _write(f"{source.shown} -> {destination.shown}")
    try:
        if arguments.dry_run:
            meant, unusable, others = survey(source, selection, stop)
            _write(f"would redrive {meant.total():,}, cannot {unusable.total():,}, would leave {others:,}")
            _write_reasons(meant)
            _write_reasons(unusable)
            return MOVED
        redrive = Redrive(source, destination, selection)
        tally = redrive.tally
        progress = _Progress()
        try:
            redrive.run(stop, lambda: progress.say(f"redriven {tally.redriven:,}, still rejected {tally.rejected:,}"))
        finally:
            _write_tally(tally)
    except TransportError as error:
        say(str(error))
        return NOT_DONE
    asked_for_all = not arguments.reason and arguments.limit is None
    return STAYED if tally.rejected or (asked_for_all and tally.left) else MOVED


def _write_tally(tally: Tally) -> None:
    left = "an unknown number" if tally.left is None else f"{tally.left:,}"
    _write(f"redriven {tally.redriven:,}, still rejected {tally.rejected:,}, left {left}")
    _write_reasons(tally.stayed)


def _write_reasons(reasons: Counter[str]) -> None:
    for reason, count in reasons.most_common(_REASONS_SHOWN):
        _write(f"{count:>9,}  {reason}")
    if len(reasons) > _REASONS_SHOWN:
        _write(f"           and {len(reasons) - _REASONS_SHOWN:,} other reasons")


# What dead processes left


def _replay(arguments: argparse.Namespace, stop: Callable[[], bool]) -> int:
    sinks = Sinks(arguments.to, urls_in(os.environ.get("STREAMLL_SINKS", "")))
    progress = _Progress()
    code = MOVED
    found = living = delivered = left = 0
    given_up: set[str] = set()
    for folder, journal in open_orphans(Path(arguments.what)):
        if stop():
            break
        if journal is None:
            living += 1
            _write(f"{folder.name}: skipped, a living process has it, or it cannot be read")
            continue
        found += 1
        try:
            sink = sinks.of(journal.identity)
        except ConfigurationError as error:
            code, left = NOT_DONE, left + journal.unsettled
            _write(f"{folder.name}: left {journal.unsettled:,}: {error}")
            continue
        _write_orphan(journal, sink)
        if arguments.dry_run or sink.destination in given_up:
            left += journal.unsettled
            continue
        done = deliver(journal, sink, stop, lambda count: progress.say(f"delivered {count:,} of them"))
        delivered += done.numbers.delivered
        left += done.left
        _write_delivery(done)
        if done.trouble:
            given_up.add(sink.destination)
            say(f"{sink.destination}: {done.trouble}")
            code = NOT_DONE
        elif done.left or done.numbers.dropped:
            code = max(code, STAYED)
    if arguments.dry_run:
        _write(f"would deliver {left:,} of {found:,} dead processes; {living:,} skipped")
    else:
        _write(f"delivered {delivered:,}, left {left:,}, of {found:,} dead processes; {living:,} skipped")
    return code


def _write_orphan(journal: AdoptedJournal, sink: Sink) -> None:
    shown = f"{journal.identity.producer} -> {sink.destination}: {journal.unsettled:,} events"
    lost = sum(last - first + 1 for first, last in journal.missing) if journal.identity.durability != "memory" else 0
    if journal.damaged or lost:
        shown += f", {journal.damaged:,} damaged places, {lost:,} lost"
    _write(shown)
    if journal.age > sink.orphan_age:
        days = journal.age / _DAY
        _write(
            f"  warning: it is {days:.0f} days old, and the destination may have forgotten what it has of it: events that "
            "were under way when the process died may be there twice"
        )


def _write_delivery(done: Delivery) -> None:
    numbers = done.numbers
    more = f", dead-lettered {numbers.dead_lettered:,}" if numbers.dead_lettered else ""
    for reason, count in sorted(numbers.dropped.items()):
        more += f", dropped {count:,} ({reason})"
    _write(f"  delivered {numbers.delivered:,}, left {done.left:,}{more}")


# What is shown


class _Progress:
    """Says on standard error, every few seconds, how far it is."""

    def __init__(self) -> None:
        self._said_at = time.monotonic()

    def say(self, text: str) -> None:
        now = time.monotonic()
        if now - self._said_at >= _PROGRESS_INTERVAL:
            self._said_at = now
            say(f"{text} ...")


def _write(text: str) -> None:
    write_line(neutral(conceal(text)))


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:18]) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return int(text[:18])
