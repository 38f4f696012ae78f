"""What an AMQP URL means; read and refused without pika."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from streamll.errors import ConfigurationError
from streamll.options import OptionSet, option


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
    from ast import literal_eval  # for the few URLs that have such an option

    try:
        return isinstance(literal_eval(text), dict)
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
        is_known = name in ours or name in PikaOptions.names()
        if not (is_known or (name.isidentifier() and "@" not in parts.query)):  # it may be a part of a password
            raise ConfigurationError(f"the AMQP URL has an option without a proper name; {remedy}")
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
