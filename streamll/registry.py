"""Registry: from a URL to the sink class of its scheme.

Our own schemes stand in a table here, so that they work without the package's metadata (in a zipapp, in a copied
folder) and without the time that reading it takes. Everybody else's are found through the entry-point group
`streamll.sinks`.

No sink, and so no client library, is imported before a URL of its scheme is met.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from streamll.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.metadata import EntryPoint

    from streamll.sinks.base import Sink

GROUP = "streamll.sinks"
"""The entry-point group in which a distribution names its sinks: `scheme = "module:Class"`."""

BUILT_IN: Mapping[str, str] = {
    "redis": "streamll.sinks.redis:RedisSink",
    "rediss": "streamll.sinks.redis:RedisSink",
    "unix": "streamll.sinks.redis:RedisSink",
    "redis+sentinel": "streamll.sinks.redis:RedisSink",
    "rediss+sentinel": "streamll.sinks.redis:RedisSink",
    "redis+cluster": "streamll.sinks.redis:RedisSink",
    "rediss+cluster": "streamll.sinks.redis:RedisSink",
    "amqp": "streamll.sinks.rabbitmq:RabbitMQSink",
    "amqps": "streamll.sinks.rabbitmq:RabbitMQSink",
    "file": "streamll.sinks.file:FileSink",
    "terminal": "streamll.sinks.terminal:TerminalSink",
    "memory": "streamll.sinks.memory:MemorySink",
}
"""The same as in pyproject.toml. These win over what another distribution may call itself."""

_OTHER_NAMES: Mapping[str, str] = {
    "rabbitmq": "amqp",
    "rabbit": "amqp",
    "rabbitmqs": "amqps",
    "redis+unix": "unix",
    "redis+socket": "unix",
    "redis-cluster": "redis+cluster",
    "redis-sentinel": "redis+sentinel",
    "sentinel": "redis+sentinel",
    "stderr": "terminal",
    "stdout": "terminal",
    "console": "terminal",
}
"""What people call a scheme that they cannot know."""

# Nothing else of a URL is ever shown: what stands before the first colon of a text that is none may be a password.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,39}):(?=//)", re.ASCII)

# A comma also stands between the hosts of one URL, so only one with a scheme behind it separates two.
_BETWEEN_URLS = re.compile(r"\s*,\s*(?=[A-Za-z][A-Za-z0-9+.-]*://)")


def known_schemes() -> list[str]:
    """Return the schemes for which there is a sink, sorted."""
    return sorted({*BUILT_IN, *_entry_points()})


@cache
def sink_class(scheme: str) -> type[Sink]:
    """Return the sink class for a URL's scheme, importing its module.

    Args:
        scheme: What stands before `://`.

    Raises:
        ConfigurationError: When there is none, or it cannot be used; says which schemes there are.
    """
    scheme = scheme.lower()
    if scheme in BUILT_IN:
        module, _, name = BUILT_IN[scheme].partition(":")
        return _checked(getattr(import_module(module), name), f"sink URL scheme {scheme!r}")
    points = _entry_points().get(scheme, ())
    if not points:
        raise _unknown(scheme)
    if len(points) > 1:
        claims = " and ".join(f"{point.value} of {_distribution(point)}" for point in points)
        raise ConfigurationError(f"sink URL scheme {scheme!r}: is claimed by {claims}; uninstall one of them")
    where = f"sink URL scheme {scheme!r}: the entry point {points[0].value!r} of {_distribution(points[0])}"
    try:
        found = points[0].load()
    except Exception as error:  # whatever a stranger's module does when it is imported
        raise ConfigurationError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    return _checked(found, where)


def make_sink(url: str, **options: Any) -> Sink:
    """Make the sink that a URL describes; it connects with its first event, not before.

    Args:
        url: `scheme://...`; its query may hold options.
        options: Options by name, and `name`, `event_filter`, `on_delivery`, `pipeline`, as the sink's class takes them.
            They win over those in the URL.

    Raises:
        ConfigurationError: When the URL or an option cannot be used. No credential is in its message.
    """
    return sink_class(scheme_of(url)).from_url(url.strip(), **options)


def urls_in(text: str) -> list[str]:
    """Return the URLs of a list such as that in STREAMLL_SINKS, which are separated by commas."""
    return [url for url in _BETWEEN_URLS.split(text.strip()) if url]


def scheme_of(url: str) -> str:
    """Return the scheme of a sink's URL.

    Raises:
        ConfigurationError: When it has none.
    """
    if not isinstance(url, str):
        raise ConfigurationError(f"sink URL: must be a string, not a {type(url).__name__}")
    match = _SCHEME.match(url.strip())
    if match is None:
        raise ConfigurationError(
            "sink URL: must begin with a scheme and ://, such as redis://localhost:6379/0; "
            f"the schemes are: {', '.join(known_schemes())}"
        )
    try:
        urlsplit(url)
    except ValueError:
        raise ConfigurationError("sink URL: the host is not well formed (an IPv6 address needs its brackets)") from None
    return match[1].lower()


@cache
def _entry_points() -> Mapping[str, tuple[EntryPoint, ...]]:
    """What other distributions offer, by scheme; one that is met twice, as after an unclean update, counts once."""
    from importlib.metadata import entry_points  # imported where first needed: it costs 10 ms

    found: dict[str, dict[str, EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name.lower(), {}).setdefault(point.value, point)
    return {scheme: tuple(points.values()) for scheme, points in found.items() if scheme not in BUILT_IN}


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown distribution"


def _checked(found: Any, where: str) -> type[Sink]:
    from streamll.sinks.base import Sink

    if not (isinstance(found, type) and issubclass(found, Sink)):
        raise ConfigurationError(f"{where} is not a subclass of streamll.sinks.base.Sink")
    return found


def _unknown(scheme: str) -> ConfigurationError:
    from difflib import get_close_matches

    known = known_schemes()
    near = [_OTHER_NAMES[scheme]] if scheme in _OTHER_NAMES else get_close_matches(scheme, known, n=1)
    hint = f"did you mean {near[0]}://? " if near else ""
    return ConfigurationError(f"sink URL scheme {scheme!r}: unknown; {hint}the schemes are: {', '.join(known)}")
