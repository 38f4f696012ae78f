"""Bring what did not get where it belonged there now: dead letters, after a fix.

URL is that of the sink (redis://host/0?stream=app, amqp://host/?exchange=app, file:///path or the path of a file), or
names the dead letters themselves (?stream=app:dead-letter, ?queue=app.dead-letter, a path that ends in
.dead-letter.jsonl). Each goes back to where it belonged, under its own producer and number, without its reason. What is
rejected again stays where it is.

The exit code is 0 when everything that was asked for has moved, 1 when some of it stayed, 2 when it could not be done.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable

from streamll.cli.interrupt import postponed_interruptions
from streamll.cli.output import conceal, write_line
from streamll.errors import ConfigurationError, TransportError
from streamll.replay.base import Redrive, Selection, Tally, survey
from streamll.replay.places import place_of
from streamll.views.line import neutral

MOVED, STAYED, NOT_DONE = 0, 1, 2

_REASONS_SHOWN = 20
_PROGRESS_INTERVAL = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("url", metavar="URL", help="where the dead letters are: the sink's URL, or their own")
    parser.add_argument("--to", metavar="URL", help="a sink's URL, to bring them there instead")
    parser.add_argument("--limit", type=_positive, metavar="N", help="as many as that, at most")
    parser.add_argument("--reason", default="", metavar="TEXT", help="only those whose reason has this in it")
    parser.add_argument("--dry-run", action="store_true", help="say what would move, by reason, and move nothing")


def run(arguments: argparse.Namespace) -> int:
    """Bring things where they belong."""
    try:
        return _redrive(arguments)
    except ConfigurationError:
        raise
    except TransportError as error:
        print(f"streamll: {_harmless(str(error))}", file=sys.stderr)
        return NOT_DONE


def _redrive(arguments: argparse.Namespace) -> int:
    place = place_of(arguments.url)
    destination = place_of(arguments.to).destination(place) if arguments.to else place.home()
    source = place.dead_letters(look=arguments.dry_run)
    selection = Selection(arguments.reason, arguments.limit)
    write_line(f"{_harmless(source.shown)} -> {_harmless(destination.shown)}")
    with postponed_interruptions("streamll: ends after the events under way; Ctrl-C again ends it at once") as stop:
        if arguments.dry_run:
            meant, unusable, others = survey(source, selection, stop)
            write_line(f"would redrive {meant.total():,}, cannot {unusable.total():,}, would leave {others:,}")
            _write_reasons(meant)
            _write_reasons(unusable)
            code = MOVED
        else:
            redrive = Redrive(source, destination, selection)
            try:
                redrive.run(stop, _progress(redrive.tally))
            finally:
                _write_tally(redrive.tally)
            asked_for_all = not arguments.reason and arguments.limit is None
            code = STAYED if redrive.tally.rejected or (asked_for_all and redrive.tally.left) else MOVED
        if stop():
            raise KeyboardInterrupt
    return code


def _write_tally(tally: Tally) -> None:
    left = "an unknown number" if tally.left is None else f"{tally.left:,}"
    write_line(f"redriven {tally.redriven:,}, still rejected {tally.rejected:,}, left {left}")
    _write_reasons(tally.stayed)


def _write_reasons(reasons: Counter[str]) -> None:
    for reason, count in reasons.most_common(_REASONS_SHOWN):
        write_line(f"{count:>9,}  {_harmless(reason)}")
    if len(reasons) > _REASONS_SHOWN:
        write_line(f"           and {len(reasons) - _REASONS_SHOWN:,} other reasons")


def _progress(tally: Tally) -> Callable[[], None]:
    """Say on standard error, every few seconds, how far it is."""
    said_at = time.monotonic()

    def say() -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= _PROGRESS_INTERVAL:
            said_at = time.monotonic()
            print(f"streamll: redriven {tally.redriven:,}, still rejected {tally.rejected:,} ...", file=sys.stderr)

    return say


def _harmless(text: str) -> str:
    return neutral(conceal(text))


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:18]) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return int(text[:18])
