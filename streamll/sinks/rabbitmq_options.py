"""What a RabbitMQ sink can be told; read and refused without pika."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streamll.errors import ConfigurationError
from streamll.options import OptionSet, option
from streamll.wire.rabbitmq import SHORT_LIMIT, RoutingKey

SINGLE, BATCH = "single", "batch"
DEFAULT_ROUTING_KEY = "{event_type}"
EXCHANGE_TYPES = ("topic", "direct", "fanout", "headers")
QUEUE_TYPES = ("classic", "quorum", "stream")


@dataclass(frozen=True)
class RabbitMQOptions(OptionSet):
    """What a RabbitMQ sink can be told beyond what every sink can."""

    owner: ClassVar[str] = "RabbitMQ "

    exchange: str = option(
        "streamll", "The exchange that events are published to; empty: the broker's default exchange."
    )
    exchange_type: str = option(
        "topic", "The type it is declared with; one that exists is used as it is.", choices=EXCHANGE_TYPES
    )
    routing_key: str | None = option(
        None,
        "A template over event_type, operation, module_name, method_name and level, such as {event_type}.{operation}; "
        "when none is given: {event_type}, or the queue's name with the default exchange.",
    )
    queue: str = option("", "A durable queue to declare and to bind to the exchange; empty: none.")
    queue_type: str = option(
        "classic", "The type it is declared with; one that exists is used as it is.", choices=QUEUE_TYPES
    )
    binding_key: str | None = option(
        None, "What binds the queue; when none is given: # (everything), or the routing key with a direct exchange."
    )
    framing: str = option(
        "single",
        "Whether each event is a message, or up to 250 whose labels are equal share one (batch), which costs the broker a "
        "tenth or less. Streamll's readers unpack it; others must do so themselves. A reader acknowledges all of a message "
        "or nothing, and a queue's limits count messages, whatever is in them.",
        choices=(SINGLE, BATCH),
    )
    confirm_window: int = option(
        1000,
        "Messages that wait for the broker's confirm at once, at most.",
        at_least=1,
        at_most=65_535,
        unit="messages",
    )
    confirm_timeout: float = option(30.0, "For the confirms of one batch.", above=0, unit="s")
    dead_letter_exchange: str | None = option(
        None,
        "A durable fanout exchange, with a queue of the same name, for events that the broker refused; when none is given: "
        "the exchange's name and .dead-letter. Declared when the first dead letter comes.",
    )
    declare: bool = option(True, "Declare what does not exist yet. When false, everything must exist.")
    cacertfile: str = option("", "For amqps: the authority to trust instead of the system's; a PEM file.")
    certfile: str = option("", "For amqps: the certificate to show; a PEM file.")
    keyfile: str = option("", "For amqps: its key; a PEM file.")

    def check(self) -> None:
        """Refuse names that AMQP cannot carry, and combinations that could deliver nothing."""
        for name in ("exchange", "queue", "binding_key", "dead_letter_name"):
            try:
                size = len((getattr(self, name) or "").encode())
            except UnicodeEncodeError:
                raise ConfigurationError(f"{self.owner}option {name}: is no text that UTF-8 can say") from None
            if size > SHORT_LIMIT:
                raise ConfigurationError(f"{self.owner}option {name}: longer than {SHORT_LIMIT} bytes")
        if self.dead_letter_name == self.exchange:
            raise ConfigurationError(f"{self.owner}option dead_letter_exchange: must not be the exchange itself")
        if not self.exchange and not self.queue and self.routing_key is None:
            raise ConfigurationError(
                f"{self.owner}option exchange='': the default exchange routes by the queue's name: give queue or routing_key"
            )
        if self.queue and self.exchange_type == "direct" and self.binding_key is None and "{" in self.key_template:
            raise ConfigurationError(
                f"{self.owner}option binding_key=None: a direct exchange needs one, unless routing_key is literal text"
            )
        if self.keyfile and not self.certfile:
            raise ConfigurationError(f"{self.owner}option keyfile: needs certfile too")
        RoutingKey(self.key_template)

    @property
    def key_template(self) -> str:
        """The routing key's template in force."""
        if self.routing_key is not None:
            return self.routing_key
        if self.exchange or not self.queue:
            return DEFAULT_ROUTING_KEY
        return self.queue.replace("{", "{{").replace("}", "}}")

    @property
    def binding(self) -> str:
        """The key in force that binds the queue."""
        if self.binding_key is not None:
            return self.binding_key
        return self.key_template if self.exchange_type == "direct" else "#"

    @property
    def dead_letter_name(self) -> str:
        """The name in force of the dead-letter exchange and its queue."""
        if self.dead_letter_exchange:
            return self.dead_letter_exchange
        # What begins with amq. is the broker's own, and nobody may add to it.
        base = f"streamll.{self.exchange}" if self.exchange.startswith("amq.") else self.exchange or "streamll"
        return f"{base}.dead-letter"
