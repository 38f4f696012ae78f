"""What `streamll check amqp://...` finds out about a broker, and what it advises.

What belongs here: the questions, in an order in which each makes sense, and words for the answers. AMQP shows little of
a broker's state, so some questions are put as requests that are refused before they change anything.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from streamll.brokers.rabbitmq_errors import ACCESS_REFUSED, PRECONDITION_FAILED, Refused
from streamll.brokers.rabbitmq_url import Address
from streamll.codec import JSON, encode
from streamll.errors import TransportError
from streamll.models import Record, StreamllEvent
from streamll.sinks.base import Finding
from streamll.sinks.rabbitmq_options import RabbitMQOptions
from streamll.wire.rabbitmq import RoutingKey

if TYPE_CHECKING:
    from streamll.brokers.rabbitmq_connection import Connection

OLDEST_KNOWN = (3, 8)
PROBE_TYPE = "streamll-check"

_CONNECT_REMEDIES = (
    (
        "Login was refused",
        "check user and password (special characters in percent encoding); guest may log in from localhost only",
    ),
    ("vhost", "check the URL's path; rabbitmqctl add_vhost creates a virtual host, set_permissions lets a user in"),
    ("Connection refused", "check host and port, and that the broker runs"),
    ("Name or service not known", "check the host's name"),
    ("certificate", "give the authority that signed the broker's certificate: cacertfile=/path/to/ca.pem"),
    ("SSL", "check that the port speaks TLS: amqps is usually on 5671, amqp on 5672"),
    ("", "check host and port, that the broker runs and speaks AMQP 0-9-1, and that no firewall is in between"),
)


def check(address: Address, options: RabbitMQOptions, timeout: float) -> list[Finding]:
    """Ask a broker whether a sink with these options can do its work there.

    Nothing is declared that stays. When the sink is not to declare a queue of its own, one message of type
    `streamll-check` is published, to see whether a queue takes it. It expires at once: only a consumer that waits at that
    moment gets it, a stream keeps it, and a queue with a dead-letter exchange of its own passes it on.

    Args:
        address: Where the broker is.
        options: What the sink would be told.
        timeout: Seconds for connecting, and for each answer.
    """
    from streamll.brokers.rabbitmq_connection import Connection

    try:
        link = Connection(
            address.url,
            host=address.host,
            blocked_timeout=timeout,
            name="streamll check",
            cacertfile=options.cacertfile,
            certfile=options.certfile,
            keyfile=options.keyfile,
        )
    except TransportError as error:
        return [Finding("error", str(error), "check the files and dictionaries that the URL names")]
    findings: list[Finding] = []
    try:
        link.connect(time.monotonic() + timeout)
        findings += _server(link, address)
        findings += _Questions(link, options, timeout).answers()
    except TransportError as error:
        remedy = next(advice for words, advice in _CONNECT_REMEDIES if words in str(error))
        findings.append(Finding("error", str(error), remedy))
    finally:
        link.close(clean=True)
    return findings


def _server(link: Connection, address: Address) -> Iterator[Finding]:
    properties = link.server_properties
    product, version = (_text(properties.get(name, "")) for name in ("product", "version"))
    yield Finding("ok", f"connected to {address.shown}: {product} {version}, virtual host {address.vhost!r}")
    if product != "RabbitMQ":
        yield Finding("warning", "this is no RabbitMQ", "expect differences: streamll is tested with RabbitMQ only")
    elif _numbers(version) < OLDEST_KNOWN:
        yield Finding("warning", f"RabbitMQ {version} is older than what streamll is tested with", "update RabbitMQ")
    if _numbers(version) >= (4, 0):
        yield Finding("ok", "this broker takes messages up to 16 MiB, unless its max_message_size says otherwise")


class _Questions:
    """One broker, asked one thing after the other; each refusal closes a channel, and the next question opens one."""

    def __init__(self, link: Connection, options: RabbitMQOptions, timeout: float) -> None:
        self._link = link
        self._options = options
        self._timeout = timeout
        self._probe = _record(StreamllEvent(event_type=PROBE_TYPE, operation=PROBE_TYPE, level="debug"))
        self._key = RoutingKey(options.key_template).of(self._probe).decode()

    def answers(self) -> Iterator[Finding]:
        options = self._options
        there = True
        if options.exchange:
            there = self._refusal(lambda: self._declare_exchange(passive=True)) is None
            yield from self._about_exchange(there)
        if options.queue:
            yield from self._about_queue()
        if there:
            yield from self._about_writing()
        if not self._link.blocked:  # then it answers nothing more
            yield from self._about_dead_letters()

    def _about_exchange(self, there: bool) -> Iterator[Finding]:
        name, kind = self._options.exchange, self._options.exchange_type
        if not there:
            yield self._missing(f"exchange {name!r}", name, f"declare a durable {kind} exchange {name!r}", "error")
            if not self._options.queue:
                yield Finding(
                    "warning",
                    f"no queue is bound to exchange {name!r} yet: events become dead letters until there is one",
                    "bind a queue to it, or let the sink do it: queue=...",
                )
            return
        refused = self._refusal(lambda: self._declare_exchange(passive=False)) if self._options.declare else None
        if refused is not None and refused.code == PRECONDITION_FAILED:
            text = f"exchange {name!r} exists, but not as it would be declared; it is used as it is ({refused.text})"
            yield Finding("warning", text, "check that it routes as you mean it to; or give its type: exchange_type=")
        else:
            yield Finding("ok", f"exchange {name!r} exists")

    def _about_queue(self) -> Iterator[Finding]:
        name, kind = self._options.queue, self._options.queue_type
        if self._refusal(lambda: self._declare_queue(name, {}, passive=True)) is not None:
            yield self._missing(
                f"queue {name!r}", name, f"declare a durable {kind} queue {name!r} and bind it", "error"
            )
            return
        arguments = {"x-queue-type": kind}
        refused = None
        if self._options.declare:
            refused = self._refusal(lambda: self._declare_queue(name, arguments, passive=False))
        if refused is not None and refused.code == PRECONDITION_FAILED:
            text = f"queue {name!r} exists, but not as it would be declared; it is used as it is ({refused.text})"
            yield Finding("warning", text, "check that it is durable; or give its type: queue_type=")
        else:
            yield Finding("ok", f"queue {name!r} exists")

    def _about_writing(self) -> Iterator[Finding]:
        exchange = self._options.exchange or "(default)"
        refused = self._refusal(self._publish_misfit)
        if self._link.blocked:
            yield Finding(
                "error", self._link.blocked, "an alarm is on: see rabbitmqctl status; free memory or disk space"
            )
        elif refused is not None and refused.code == ACCESS_REFUSED:
            remedy = "give the user the permission to write to it: rabbitmqctl set_permissions"
            yield Finding("error", f"this user may not publish to exchange {exchange!r}: {refused.text}", remedy)
        elif refused is None or refused.code != PRECONDITION_FAILED:
            yield Finding("warning", f"whether this user may publish could not be seen ({refused or 'no answer'})")
        else:
            yield Finding("ok", f"this user may publish to exchange {exchange!r}")
            if not self._options.queue and self._options.exchange_type != "headers":
                yield from self._about_routing()

    def _about_routing(self) -> Iterator[Finding]:
        link, returned, answered = self._link, [], []

        def on_return(_name: str, reason: str) -> None:
            returned.append(reason)

        link.confirm(lambda tag, _multiple, _acked: answered.append(tag), on_return, deadline=self._deadline())
        link.publish(
            self._options.exchange,
            self._key,
            self._probe.payload,
            content_type=self._probe.content_type,
            type=PROBE_TYPE,
            expiration="0",
            deadline=self._deadline(),
        )
        if not link.run(lambda: bool(answered), self._deadline()):
            yield Finding("warning", "the broker did not confirm a message in time", "see whether it is overloaded")
        elif returned:
            yield Finding(
                "warning",
                f"no queue takes messages with routing key {self._key!r}: events with such a key become dead letters",
                "bind a queue to the exchange, or let the sink do it: queue=...; all is well if those that are bound are "
                "meant for other keys",
            )
        else:
            yield Finding("ok", f"a queue takes messages with routing key {self._key!r}")

    def _about_dead_letters(self) -> Iterator[Finding]:
        name = self._options.dead_letter_name
        if self._refusal(lambda: self._link.declare_exchange(name, "fanout", passive=True, deadline=self._deadline())):
            yield self._missing(
                f"dead-letter exchange {name!r}",
                name,
                f"declare a durable fanout exchange {name!r} with a queue; until then, what the broker refuses is dropped",
                "warning",
            )
        else:
            yield Finding("ok", f"dead-letter exchange {name!r} exists")

    def _missing(self, what: str, name: str, remedy: str, level: str) -> Finding:
        if not self._options.declare:
            return Finding(level, f"{what} does not exist, and declare is false", remedy)
        may = self._may_declare(name)
        if may is None:
            return Finding("ok", f"{what} does not exist yet; the sink declares it when it needs it")
        return Finding(level, f"{what} does not exist, and this user may not declare it ({may.text})", remedy)

    def _may_declare(self, name: str) -> Refused | None:
        """Ask for the permission with a queue that is gone at once: permissions go by the name alone."""
        if self._refusal(lambda: self._declare_queue(name, {}, passive=True)) is None:
            return None  # there is a queue of that name; whether an exchange may be declared cannot be seen
        refused = self._refusal(lambda: self._link.try_name(name, deadline=self._deadline()))
        return refused if refused is not None and refused.code == ACCESS_REFUSED else None

    def _declare_exchange(self, passive: bool) -> None:
        options = self._options
        self._link.declare_exchange(options.exchange, options.exchange_type, passive=passive, deadline=self._deadline())

    def _declare_queue(self, name: str, arguments: dict[str, str], passive: bool) -> None:
        self._link.declare_queue(name, arguments, passive=passive, deadline=self._deadline())

    def _refusal(self, question: Callable[[], None]) -> Refused | None:
        """Return the broker's refusal, which closes the channel; None when it did not refuse."""
        try:
            question()
        except Refused as refused:
            return refused
        return None

    def _publish_misfit(self) -> None:
        """Publish what is refused for its form, but only after the permission to publish was looked at."""
        self._link.publish(self._options.exchange, self._key, b"", expiration="never", deadline=self._deadline())
        self._link.run(lambda: bool(self._link.blocked), self._deadline())
        if self._link.refused is not None:
            raise self._link.refused

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout


def _record(event: StreamllEvent) -> Record:
    return Record(
        payload=encode(event, JSON),
        content_type=JSON,
        event_id=event.event_id,
        event_type=event.event_type,
        operation=event.operation,
        module_name=event.module_name,
        method_name=event.method_name,
        level=event.level,
        execution_id=event.execution_id,
        timestamp=event.timestamp,
        created=0,
    )


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version; (0,) when it has none."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2]) or (0,)
