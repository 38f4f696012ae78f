"""Say whether all events that were accepted are there: per producer the doubles, the disorder, and what is missing.

Reads a Redis stream, a RabbitMQ stream queue or a file from its beginning to its end, and takes nothing away. A loss
that a sink declared is a loss that it counted; one that nobody declared is a defect somewhere. What is among the dead
letters, which are read beside it, is not lost.

With --follow it goes on, and says what changes; a RabbitMQ exchange can be followed only, from now on, by a queue of our
own. Any other queue has to be emptied to be read: that takes --drain.

The exit code is 0 when no loss is undeclared, 1 when one is, 2 when there was nothing to judge or it could not be read.
Doubles and disorder do not change it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from streamll.cli.interrupt import postponed_interruptions
from streamll.cli.output import conceal, consumers_heard, say, write_line
from streamll.cli.urls import query_of
from streamll.consumers import Consumer, FileConsumer, Received, RedisConsumer, consumer_for
from streamll.consumers.rabbitmq import NO_STREAM
from streamll.errors import ConfigurationError, ConsumerError
from streamll.views.audit import Audit, AuditReport
from streamll.views.audit_text import audit_lines, verdict
from streamll.views.audit_watch import Watch
from streamll.views.line import neutral_json

COMPLETE, LOSS, NOT_JUDGED = 0, 1, 2

_GLANCE = 0.25
_LOOK_EVERY = 0.5
_GRACE = 10.0
_PAGE = 2000
_MOST_UNTAKEN = 65_535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "url",
        metavar="URL",
        help="redis://host:6379/0?stream=app, amqp://user:password@host/?queue=app, file:///path, or a path",
    )
    parser.add_argument("--follow", action="store_true", help="go on with what comes, and say what changes")
    parser.add_argument(
        "--start",
        "--from",
        metavar="PLACE",
        help="where to start: beginning, end, or a position to go on after; beginning by default",
    )
    parser.add_argument(
        "--dead-letters",
        metavar="URL",
        help="where dead letters are, or none; by default beside a Redis stream or a file, and none with RabbitMQ",
    )
    parser.add_argument("--drain", action="store_true", help="read a RabbitMQ queue by taking its messages away")
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=_GRACE,
        metavar="SECONDS",
        help="with --follow: how long a number may be missing before it is called so (10)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON: a line for each change, and one for the outcome"
    )


def run(arguments: argparse.Namespace) -> int:
    """Audit a source."""
    audit = Audit()
    watch = Watch(audit, arguments.grace)
    # What was followed or drained cannot be read again: it ends with its outcome, whatever it is that ends it.
    unrepeatable = arguments.follow or arguments.drain
    failed = False
    with ExitStack() as open_things:
        consumer = open_things.enter_context(_consumer(arguments))
        letters, implied = _dead_letters(arguments)
        if letters:
            open_things.enter_context(letters)
        open_things.enter_context(consumers_heard(letters.shown if letters and implied else ""))
        stopped = open_things.enter_context(postponed_interruptions("", terminations=True)) if unrepeatable else _never
        try:
            if arguments.follow:
                _follow(arguments, audit, watch, consumer, letters, stopped)
            else:
                _read(audit, consumer, arguments.drain, stopped)
                _read_dead_letters(audit, letters)
        except ConsumerError as error:
            failed = True
            remedy = "; say --drain to empty it, or --follow its exchange" if NO_STREAM in str(error) else ""
            say(f"{error}{remedy}")
    report = audit.report()
    empty = not report.producers and not report.forgotten
    if empty and not failed and not arguments.follow:
        say(f"{consumer.shown}: has no events of streamll, so there is nothing to judge")
    if (empty and not arguments.follow) or (failed and (empty or not unrepeatable)):
        return NOT_JUDGED
    code = _conclude(arguments, consumer.shown, report, watch.waiting if arguments.follow else 0)
    if stopped() and not arguments.follow:
        raise KeyboardInterrupt
    return NOT_JUDGED if failed else code


def _never() -> bool:
    return False


def _follow(
    arguments: argparse.Namespace,
    audit: Audit,
    watch: Watch,
    consumer: Consumer,
    letters: Consumer | None,
    stopped: Callable[[], bool],
) -> None:
    """Go on until a signal comes, and say what changes."""
    while True:
        last_round = stopped()

        def enough(look_at: float = time.monotonic() + _LOOK_EVERY) -> bool:
            return stopped() or time.monotonic() >= look_at

        _read(audit, consumer, arguments.drain, enough)
        _read_dead_letters(audit, letters)
        for change in watch.changes(time.monotonic()):
            if arguments.json:
                _write_json({"change": change.kind, **{k: v for k, v in asdict(change).items() if k != "kind"}})
            else:
                write_line(change.text)
        if last_round:
            return


def _read(audit: Audit, consumer: Consumer, takes: bool, enough: Callable[[], bool]) -> None:
    """Take in what comes, until nothing does or it is enough."""
    for item in consumer:
        audit.whole = consumer.whole  # known with the first page
        if item.after_cut:
            audit.cut()
        if item.note or item.error:
            _add_other(audit, item)
        else:
            audit.add(item.producer, item.seq, item.redelivered)
        if takes:
            item.ack()
        if enough():
            break


def _add_other(audit: Audit, item: Received) -> None:
    """Take in a note, or what cannot be read, which is a note if it has a number."""
    if item.producer:
        audit.add_note(item.producer, item.seq, item.event, item.redelivered)
    else:
        audit.add_stranger()


def _read_dead_letters(audit: Audit, letters: Consumer | None) -> None:
    """Take in the dead letters that are there."""
    if letters is None:
        return
    untaken = 0
    for item in letters:
        audit.add_dead_letter(item.producer, item.seq)
        untaken += item.ticket is not None
    if untaken >= _MOST_UNTAKEN:
        say(f"{letters.shown}: no more than {_MOST_UNTAKEN:,} messages of it can be read without taking them")


def _conclude(arguments: argparse.Namespace, source: str, report: AuditReport, waiting: int) -> int:
    """Say what was found; returns the exit code."""
    code = LOSS if report.total.undeclared > waiting else COMPLETE
    if arguments.json:
        outcome = {"status": code, "verdict": verdict(report, waiting), "waiting": waiting}
        _write_json({"source": conceal(source), **outcome, **asdict(report)})
    else:
        for line in audit_lines(report, waiting):
            write_line(line)
    return code


def _write_json(fields: dict[str, Any]) -> None:
    write_line(neutral_json(json.dumps(fields, ensure_ascii=False)))


def _consumer(arguments: argparse.Namespace) -> Consumer:
    """Return what reads the source, so that nothing is taken from anybody unless that is asked for."""
    url: str = arguments.url
    options = {"start": arguments.start, "follow": arguments.follow, "timeout": _GLANCE if arguments.follow else None}
    if not _is_rabbitmq(url):
        if arguments.drain:
            raise ConfigurationError("--drain: only a RabbitMQ queue has to be emptied to be read; leave it out")
        return _open(url, **options)
    query = query_of(url)
    queue, exchange = query.get("queue", ""), query.get("exchange", "")
    if arguments.drain:
        if not queue:
            raise ConfigurationError("--drain: name the queue to empty (?queue=...)")
        return _open(url, **options)
    # A sink's URL may name both; the queue is somebody's then, unless it is said to be a stream.
    if queue and not (arguments.follow and exchange and query.get("queue_type") != "stream"):
        return _open(url, **options, stream_only=True)
    if not arguments.follow:
        raise ConfigurationError(
            "an exchange keeps nothing to read back: say --follow for what is published from now on, or name a stream "
            "queue (?queue=...), or say --drain to empty another one"
        )
    return _open(url, **options, queue="", binding_key="#")


def _dead_letters(arguments: argparse.Namespace) -> tuple[Consumer | None, bool]:
    """Return what reads the dead letters, if anything, and whether nobody asked for it."""
    url: str | None = arguments.dead_letters
    if url == "none" or (url is None and _is_rabbitmq(arguments.url)):
        return None, False
    # Until there is no more, without waiting for it.
    options: dict[str, Any] = {"start": None, "follow": True, "timeout": 0.0}
    if url is None:
        beside = FileConsumer.of_dead_letters if _is_file(arguments.url) else RedisConsumer.of_dead_letters
        return beside(arguments.url, **_options_of(arguments.url), **options), True
    if not _is_rabbitmq(url):
        return _open(url, **options), False
    # What is delivered and not acknowledged is in its place again when the connection ends. That must not take long.
    if arguments.follow:
        query = query_of(url)
        return _open(url, **options, stream_only=bool(query.get("queue"))), False
    return _open(url, start=None, follow=False, timeout=None, prefetch=_MOST_UNTAKEN), False


def _open(url: str, **options: Any) -> Consumer:
    if _is_file(url) and "://" not in url:
        return FileConsumer(url, **_options_of(url), **options)
    return consumer_for(url, **_options_of(url), **options)


def _options_of(url: str) -> dict[str, Any]:
    """What every consumer of an audit is told: every entry counts, and only notes need to be understood."""
    options: dict[str, Any] = {"notes": True, "decode": False, "dedup_window": 0, "page_size": _PAGE}
    if not _is_file(url) and not _is_rabbitmq(url):
        options |= {"group": "", "consumer": ""}
    return options


def _is_rabbitmq(url: str) -> bool:
    return url.partition(":")[0].lower() in ("amqp", "amqps")


def _is_file(url: str) -> bool:
    return "://" not in url or url.partition(":")[0].lower() == "file"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"must be a number of seconds from 0 to 86400, not {text!r}")
    return seconds
