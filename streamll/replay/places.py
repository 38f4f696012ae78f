"""What a URL means to a redrive: where dead letters lie, where they belong, and where they are to go instead.

What belongs here: the reading of URLs, without any client library. What does not: how letters are moved.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from streamll.brokers.rabbitmq_url import read_url as read_rabbitmq_url
from streamll.errors import ConfigurationError
from streamll.options import SinkOptions
from streamll.replay.base import DeadLetters, Destination
from streamll.replay.file import FileDeadLetters, FileDestination, with_rotated
from streamll.replay.rabbitmq import RabbitMQDeadLetters, RabbitMQDestination
from streamll.replay.redis import RedisDeadLetters, RedisDestination
from streamll.sinks.file import DEAD_LETTER_SUFFIX, FileOptions, FileSink
from streamll.sinks.rabbitmq import RabbitMQSink
from streamll.sinks.rabbitmq_options import RabbitMQOptions
from streamll.sinks.redis import RedisSink
from streamll.sinks.redis import read_url as read_redis_url
from streamll.wire.redis import hash_slot, keys_for

_REDIS_SUFFIX = ":dead-letter"
_RABBITMQ_SUFFIX = ".dead-letter"


class Place:
    """One kind of broker: a URL of it, read as a sink would read it.

    Attributes:
        dead_letters_of: What names the place of the dead letters, whoever asks.
    """

    dead_letters_of: str

    def dead_letters(self, *, look: bool) -> DeadLetters:
        """Return the place of the dead letters; `look`: nothing is to be moved."""
        raise NotImplementedError

    def home(self) -> Destination:
        """Return where those belong."""
        raise NotImplementedError

    def destination(self, source: Place) -> Destination:
        """Return this place as another destination for the dead letters of a source."""
        raise NotImplementedError


def place_of(url: str) -> Place:
    """Read a URL, or the path of a file.

    Raises:
        ConfigurationError: When it cannot be used, or no dead letters are kept at such a place.
    """
    scheme, found, _ = url.strip().partition("://")
    if not found:
        return FilePlace(url)
    kind = {"amqp": RabbitMQPlace, "amqps": RabbitMQPlace, "file": FilePlace}.get(scheme.lower())
    if kind is not None:
        return kind(url.strip())
    if scheme.lower() in ("redis", "rediss", "unix") or scheme.lower().startswith(("redis+", "rediss+")):
        return RedisPlace(url.strip())
    raise ConfigurationError(
        "replay: dead letters are in Redis (redis://), in RabbitMQ (amqp://) or in a file (file://, or its path), "
        "and go to one of them; the URL given is of another kind"
    )


class RedisPlace(Place):
    """A stream of Redis, and its dead letters."""

    def __init__(self, url: str) -> None:
        self._address, given = read_redis_url(url)
        given.pop("name", None)
        own, self._options = RedisSink.split_options(given)
        self._server = replace(self._address, options={})  # and the login: who it is decides what may be done
        cluster = self._address.kind == "cluster"
        stream: str = own.stream
        if stream.endswith(_REDIS_SUFFIX) and not own.dead_letter_stream:
            self._dead_letters = stream.encode("utf-8", "surrogateescape")
            stream = stream.removesuffix(_REDIS_SUFFIX)
            if cluster and stream.startswith("{") and stream.endswith("}"):
                raise ConfigurationError(
                    f"redis option stream={own.stream!r}: in a cluster, these may be the dead letters of two streams: "
                    f"name the stream instead, {stream[1:-1]!r} or {stream!r}"
                )
        else:
            self._dead_letters = keys_for(stream, "", own.dead_letter_stream, cluster).dead_letters
        self._stream = stream
        keys_for(stream, "", self._dead_letters.decode("utf-8", "surrogateescape"), cluster)  # refuses what cannot be
        self.dead_letters_of = f"{self._address.shown} {self._dead_letters.decode('utf-8', 'surrogateescape')}"

    def dead_letters(self, *, look: bool) -> DeadLetters:
        """See `Place.dead_letters`."""
        return RedisDeadLetters(self._address, self._dead_letters, self._options)

    def home(self) -> Destination:
        """See `Place.home`."""
        return self.destination(self)

    def destination(self, source: Place) -> Destination:
        """See `Place.destination`: on the same server, and in a cluster in the same slot, one step does all."""
        together = b""
        if isinstance(source, RedisPlace) and source._server == self._server:
            slots = {hash_slot(source._dead_letters), hash_slot(self._stream.encode("utf-8", "surrogateescape"))}
            if self._address.kind != "cluster" or len(slots) == 1:
                together = source._dead_letters
        return RedisDestination(self._address, self._stream, source.dead_letters_of, self._options, together)


class RabbitMQPlace(Place):
    """An exchange of RabbitMQ, and the queue of its dead letters."""

    def __init__(self, url: str) -> None:
        self._address = read_rabbitmq_url(url, (*RabbitMQOptions.names(), *SinkOptions.names(), "name"))
        given = dict(self._address.options)
        given.pop("name", None)
        named = given.get("queue", "")
        direct = named.endswith(_RABBITMQ_SUFFIX) and "dead_letter_exchange" not in given
        if direct:
            del given["queue"]
            exchange = named.removesuffix(_RABBITMQ_SUFFIX)
            given.setdefault(
                "exchange", exchange.removeprefix("streamll.") if "streamll.amq." in exchange else exchange
            )
        self._own, self._options = RabbitMQSink.split_options(given)
        self._queue: str = named if direct else self._own.dead_letter_name
        self.dead_letters_of = f"{self._address.shown} {self._queue}"

    def dead_letters(self, *, look: bool) -> DeadLetters:
        """See `Place.dead_letters`."""
        return RabbitMQDeadLetters(self._address, self._queue, self._own, self._options)

    def home(self) -> Destination:
        """See `Place.home`."""
        return RabbitMQDestination(self._address, self._own, self._options, own_keys=True)

    def destination(self, source: Place) -> Destination:
        """See `Place.destination`."""
        return RabbitMQDestination(self._address, self._own, self._options, own_keys=False)


class FilePlace(Place):
    """A file, and that of its dead letters."""

    def __init__(self, url: str) -> None:
        given: dict[str, str] = {}
        text = url
        if "://" in url:
            text, given = FileSink.read_url(url)
        given.pop("name", None)
        own, self._options = FileSink.split_options(given)
        self._own: FileOptions = own
        path = Path(os.path.abspath(text))  # noqa: PTH100  # Path.resolve would follow links
        if path.name.endswith(DEAD_LETTER_SUFFIX):
            self._dead_letters = path
            self._path = path.with_name(path.name.removesuffix(DEAD_LETTER_SUFFIX))
        else:
            self._dead_letters = path.with_name(path.name + DEAD_LETTER_SUFFIX)
            self._path = path
        self.dead_letters_of = f"file {self._dead_letters}"

    def exists(self) -> bool:
        """Whether there is such a file, or one of its dead letters."""
        return self._path.exists() or bool(with_rotated(self._dead_letters))

    def dead_letters(self, *, look: bool) -> DeadLetters:
        """See `Place.dead_letters`."""
        return FileDeadLetters(self._dead_letters, self._options, look=look)

    def home(self) -> Destination:
        """See `Place.home`."""
        return FileDestination(self._path, self._own, self._options)

    def destination(self, source: Place) -> Destination:
        """See `Place.destination`."""
        return self.home()
