"""What a RabbitMQ sink can be told, by options and by its URL; read and refused without pika.

What belongs here: the options, and the taking apart of a URL. What does not: connecting.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from streamll.errors import ConfigurationError
from streamll.options import OptionSet, option
from streamll.wire.rabbitmq import SHORT_LIMIT, RoutingKey

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
    confirm_window: int = option(
        1000, "Messages that wait for the broker's confirm at once, at most.", at_least=1, at_most=65_535, unit="events"
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


@dataclass(frozen=True)
class PikaOptions(OptionSet):
    """What of pika's own URL options is handed on. Retries are not: the sink does them."""

    owner: ClassVar[str] = "RabbitMQ URL "

    heartbeat: int | None = option(None, "The heartbeat to ask for; 0: none.", at_least=0, at_most=65_535, unit="s")
    frame_max: int | None = option(None, "The longest frame to agree to.", at_least=4096, at_most=131_072, unit="bytes")
    channel_max: int | None = option(None, "The most channels to agree to.", at_least=1, at_most=65_535)
    blocked_connection_timeout: float | None = option(
        None, "When a blocked connection is given up; as a default after confirm_timeout.", at_least=0, unit="s"
    )
    locale: str | None = option(None, "The locale of the broker's messages.")
    ssl_options: str | None = option(None, "A Python dictionary, as in pika's documentation.")
    client_properties: str | None = option(None, "A Python dictionary of what the broker is told of this client.")
    tcp_options: str | None = option(None, "A Python dictionary, as in pika's documentation.")

    def check(self) -> None:
        """Refuse what is no dictionary; its text is not repeated, since it may hold a secret."""
        for name in ("ssl_options", "client_properties", "tcp_options"):
            text = getattr(self, name)
            if text is not None and not _is_dictionary(text):
                raise ConfigurationError(f"{self.owner}option {name}: must be a dictionary in Python's notation")


def _is_dictionary(text: str) -> bool:
    try:
        return isinstance(ast.literal_eval(text), dict)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


@dataclass(frozen=True)
class Address:
    """A URL, taken apart.

    Attributes:
        url: What pika gets: credentials included, options of ours taken out.
        host: Host and port, for messages.
        vhost: The virtual host.
        scheme: amqp or amqps.
        options: Options of ours that stood in it, as text.
    """

    url: str = field(repr=False)
    host: str
    vhost: str
    scheme: str
    options: dict[str, str]

    @property
    def shown(self) -> str:
        """The address without credentials and options."""
        return f"{self.scheme}://{self.host}/{'' if self.vhost == '/' else self.vhost}"


def read_url(url: str, ours: Iterable[str]) -> Address:
    """Take an AMQP URL apart: `amqp[s]://user:password@host:port/vhost?option=value`.

    Without a path the virtual host is `/`; its own slashes are written `%2F`. Special characters of a password are
    written in percent encoding too.

    Args:
        url: The URL.
        ours: Names of options that are not for pika.

    Raises:
        ConfigurationError: It cannot be used. The message shows neither user nor password.
    """
    remedy = "write amqp://user:password@host:5672/vhost, special characters of the password in percent encoding"
    scheme = url.partition(":")[0].lower()
    if scheme not in ("amqp", "amqps") or not url[len(scheme) :].startswith("://"):
        raise ConfigurationError(f"not an AMQP URL: it must start with amqp:// or amqps://; {remedy}")
    try:
        parts = urlsplit(url)
        port = parts.port or (5671 if scheme == "amqps" else 5672)
    except ValueError:
        raise ConfigurationError(f"the AMQP URL's host or port cannot be read; {remedy}") from None
    if parts.fragment:
        raise ConfigurationError(f"the AMQP URL has a '#' in it; {remedy}")
    if parts.username is not None and parts.password is None:
        raise ConfigurationError(f"the AMQP URL has a user but no password; {remedy}")
    path = parts.path[1:]
    if "/" in path:
        raise ConfigurationError(
            f"the AMQP URL has several parts in its path; write a virtual host's slash as %2F; {remedy}"
        )
    ours = set(ours)
    mine: dict[str, str] = {}
    theirs: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in mine or name in theirs:
            raise ConfigurationError(f"the AMQP URL has the option {name} more than once")
        (mine if name in ours else theirs)[name] = value
    PikaOptions.from_mapping(theirs, also=ours)
    host = parts.hostname or "localhost"
    return Address(
        url=f"{scheme}://{parts.netloc}{parts.path}" + (f"?{urlencode(theirs)}" if theirs else ""),
        host=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        vhost=unquote(path) or "/",
        scheme=scheme,
        options=mine,
    )
