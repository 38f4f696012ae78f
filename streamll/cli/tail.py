"""Follow the events of a Redis stream, a RabbitMQ exchange or queue, or a file, as they come.

Filters are names or patterns with * and ?; an event is shown when it matches one of each kind that is given. What
cannot be decoded is shown as such when there is no filter.

Looking takes nothing away: Redis is read without a group, and a RabbitMQ exchange by a queue of our own. Only a queue
that is no stream has to be emptied to be read: that takes --take.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from streamll.cli.interrupt import interruptions
from streamll.cli.output import as_json, as_text, consumers_heard, takes_color, write_line
from streamll.cli.urls import query_of
from streamll.consumers import Consumer, FileConsumer, Received, consumer_for
from streamll.errors import ConfigurationError

_GLANCE = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "url",
        metavar="URL",
        help="redis://host:6379/0?stream=app, amqp://user:password@host/?exchange=app, file:///path, or a path",
    )
    parser.add_argument("--type", action="append", default=[], metavar="NAME", help="show events of this type")
    parser.add_argument(
        "--operation", action="append", default=[], metavar="NAME", help="show events of this operation"
    )
    parser.add_argument(
        "--execution",
        action="append",
        default=[],
        metavar="ID",
        help="show events of this execution; its beginning is enough",
    )
    parser.add_argument(
        "--from",
        dest="start",
        metavar="PLACE",
        help="where to start: beginning, end, or the position to go on after (a Redis entry id, a stream queue's offset, "
        "a place in a file); end, unless --no-follow",
    )
    parser.add_argument("--count", type=_positive, metavar="N", help="end after so many")
    parser.add_argument("--no-follow", action="store_true", help="end at what is there now")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each")
    parser.add_argument(
        "--take", action="store_true", help="read a RabbitMQ queue that is no stream: takes its messages away"
    )


def run(arguments: argparse.Namespace) -> int:
    """Show events until there are no more to show."""
    wanted = _filter(arguments)
    color = takes_color(os.environ)
    start = arguments.start or ("beginning" if arguments.no_follow else "end")
    left = arguments.count
    with consumers_heard(), interruptions() as interrupted, _consumer(arguments, start) as consumer:
        # An end to a loop every now and then, to see an interruption that came to nothing.
        while not consumer.ended and not interrupted():
            for item in consumer:
                if wanted(item):
                    text = as_json(item) if arguments.json else as_text(item, color=color, dated=start != "end")
                    write_line(text)
                    left = None if left is None else left - 1
                item.ack()
                if left == 0:
                    return 0
        if interrupted():
            raise KeyboardInterrupt
    return 0


def _consumer(arguments: argparse.Namespace, start: str) -> Consumer:
    url: str = arguments.url
    options: dict[str, Any] = {"start": start, "follow": not arguments.no_follow, "timeout": _GLANCE, "notes": True}
    scheme = url.partition(":")[0].lower()
    if "://" not in url and scheme != "file":
        return FileConsumer(url, **options)
    if scheme in ("amqp", "amqps"):
        return _rabbitmq_consumer(arguments, url, options)
    if scheme != "file":
        options |= {"group": "", "consumer": ""}
    return consumer_for(url, **options)


def _rabbitmq_consumer(arguments: argparse.Namespace, url: str, options: dict[str, Any]) -> Consumer:
    """Watch the exchange, unless a queue is named that keeps its messages, or may be emptied."""
    query = query_of(url)
    queue = query.get("queue", "")
    if not queue or arguments.take or query.get("queue_type") == "stream":
        return consumer_for(url, **options)
    if "exchange" in query:
        return consumer_for(url, queue="", **options)
    raise ConfigurationError(
        f"reading queue {queue!r} takes its messages away from whoever else reads it: name the exchange instead "
        "(?exchange=...), add queue_type=stream when it is a stream, or say --take"
    )


def _filter(arguments: argparse.Namespace) -> Callable[[Received], bool]:
    types, operations, executions = arguments.type, arguments.operation, arguments.execution
    if not (types or operations or executions):
        return lambda item: True

    def wanted(item: Received) -> bool:
        event = item.event
        return (
            event is not None
            and _matches(event.event_type, types)
            and _matches(event.operation, operations)
            and _matches(event.execution_id, [f"{ident}*" for ident in executions])
        )

    return wanted


def _matches(text: str, patterns: list[str]) -> bool:
    return not patterns or any(fnmatchcase(text, pattern) for pattern in patterns)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:18]) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return int(text[:18])
