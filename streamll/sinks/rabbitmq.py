"""RabbitMQSink: publishes events to an exchange of RabbitMQ.

What belongs here: the class, and how URL and options become a transport. What does not: the transport
(rabbitmq_transport.py), the options (rabbitmq_options.py), the check of a server (rabbitmq_check.py). Nothing here
imports pika.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote, urlencode

from streamll.brokers.rabbitmq_url import Address, read_url
from streamll.options import EventFilter, OptionSet, SinkOptions
from streamll.pipeline import Pipeline
from streamll.sinks.base import Finding, OnDelivery, Sink, Transport
from streamll.sinks.rabbitmq_options import RabbitMQOptions

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_URL = "amqp://guest:guest@localhost:5672/"

_DESTINATION = (
    *("exchange", "exchange_type", "routing_key", "queue", "queue_type", "binding_key"),
    *("dead_letter_exchange", "declare"),
)
"""The options that say where events go, and not only how."""


class RabbitMQSink(Sink):
    """Publishes each event as one persistent message, `mandatory` and confirmed by the broker: at least once.

    A message that no queue takes becomes a dead letter: unroutable. AMQP 0-9-1 cannot deduplicate: after a cut connection
    up to `confirm_window` messages may be there twice, under the same message id, `producer:seq`. With `framing="batch"`
    a message holds many events, which costs the broker a fraction; streamll's readers unpack it without being told, and
    tell doubles apart event by event.

    What is missing (exchange, queue, binding) is declared, unless `declare` is false; what exists is used as it is, so a
    user who may only write can deliver.

    Args:
        amqp_url: `amqp://user:password@host:port/vhost`, or `amqps://` for TLS; special characters in percent encoding.
            Without a path the virtual host is `/`. The query may hold any option of the sink, and of pika's heartbeat,
            frame_max, channel_max, blocked_connection_timeout, locale, ssl_options, client_properties and tcp_options.
        exchange: The exchange; default: streamll, a durable topic exchange. Empty: the broker's default exchange.
        routing_key: A template over event_type, operation, module_name, method_name and level, such as
            `{event_type}.{operation}`; an empty label becomes `none`. Default: `{event_type}`, or the queue's name with
            the default exchange.
        name: The sink's name in stats and logs.
        event_filter, on_delivery, pipeline, retry_wait: As for every sink.
        options: Those of `RabbitMQOptions` and of every sink; they win over those in the URL. `send_timeout` is
            `confirm_timeout` unless it is given.

    Raises:
        ConfigurationError: The URL or an option cannot be used. The message shows no credential.

    Example:
        sink = RabbitMQSink("amqp://guest:guest@localhost/", exchange="app", queue="app-events")
        sink.handle_event(StreamllEvent(event_type="token"))
        sink.stop()
    """

    own_options: ClassVar[type[OptionSet]] = RabbitMQOptions
    scheme: ClassVar[str] = "rabbitmq"

    def __init__(
        self,
        amqp_url: str = DEFAULT_URL,
        exchange: str | None = None,
        routing_key: str | None = None,
        *,
        name: str = "",
        event_filter: EventFilter | None = None,
        on_delivery: OnDelivery | None = None,
        pipeline: Pipeline | None = None,
        retry_wait: Any = None,
        **options: Any,
    ) -> None:
        address = read_url(amqp_url, self._names())
        given = {
            key: value for key, value in (("exchange", exchange), ("routing_key", routing_key)) if value is not None
        }
        merged: dict[str, Any] = {**address.options, **options, **given}
        name = name or str(merged.pop("name", ""))
        own, shared = self.split_options(merged)
        if "send_timeout" not in merged:
            shared = replace(shared, send_timeout=own.confirm_timeout)

        def transport(producer: str) -> Transport:
            # On the worker's thread: what a connection needs takes longer to import than `configure` is to last.
            from streamll.sinks.rabbitmq_transport import RabbitMQTransport

            return RabbitMQTransport(address, own, producer, f"streamll {self.name}")

        super().__init__(
            destination=f"{address.shown} exchange {own.exchange or '(default)'}",
            address=_address_of(address, own),
            transport=transport,
            options=shared,
            name=name,
            event_filter=event_filter,
            on_delivery=on_delivery,
            pipeline=pipeline,
            retry_wait=retry_wait,
        )

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Make a sink from `amqp://` or `amqps://`; see the class for what the URL may hold.

        Raises:
            ConfigurationError: The URL or an option cannot be used.
        """
        return cls(url, **options)

    @classmethod
    def check_url(cls, url: str) -> list[Finding]:
        """Say whether the broker behind a URL can be reached, and whether what is promised can be kept there.

        It changes nothing on the broker. A message that expires at once is published to see whether a queue takes it.

        Raises:
            ConfigurationError: The URL or an option in it cannot be used.
        """
        from streamll.sinks.rabbitmq_check import check

        address = read_url(url, cls._names())
        options = {key: value for key, value in address.options.items() if key != "name"}
        own, shared = cls.split_options(options)
        return check(address, own, timeout=shared.connect_timeout)

    @classmethod
    def _names(cls) -> tuple[str, ...]:
        return (*cls.own_options.names(), *SinkOptions.names(), "name")


def _address_of(address: Address, own: RabbitMQOptions) -> str:
    """A URL to the same destination, without credentials. What UTF-8 cannot say is for the connection to refuse."""
    vhost = "" if address.vhost == "/" else quote(address.vhost, safe="", errors="surrogatepass")
    there = {name: value for name, value in own.given().items() if name in _DESTINATION}
    return f"{address.scheme}://{address.host}/{vhost}" + (
        f"?{urlencode(there, errors='surrogatepass')}" if there else ""
    )
