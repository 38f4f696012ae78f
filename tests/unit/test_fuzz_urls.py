"""URLs and options as nobody would write them: used, or refused by a ConfigurationError that tells no password."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from streamll.brokers.rabbitmq_url import read_url
from streamll.brokers.redis_url import parse_redis_url
from streamll.cli.output import conceal, conceal_url
from streamll.consumers import consumer_for
from streamll.errors import ConfigurationError
from streamll.options import PipelineOptions, SinkOptions
from streamll.registry import BUILT_IN, make_sink, urls_in

CORE = "Hu5hHu5h"

SCHEMES = st.sampled_from([*BUILT_IN, "http", "", "REDIS", "rdis", "x+y"])
PARTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "//",
            ":",
            "@",
            "/",
            "?",
            "#",
            "&",
            "=",
            "%",
            "%2",
            "%00",
            "%ff",
            "[",
            "]",
            "[::1]",
            ",",
            "h",
            "6379",
            "99999",
            "0",
            "s",
            "stream=",
            "exchange=",
            "queue=",
            "db=",
            "batch_size=",
            "ssl_options={}",
            "client_properties=",
            "\\",
            " ",
            "\n",
            "stop_timeout=nan",
            "flush_interval=1e999",
            "buffer_size=-1",
            "durability=",
            "trim=",
            "\x00",
            "\ud800",
            "²",
            "٣",
        ]
    ),
)
URLS = st.builds(
    lambda scheme, separator, parts: f"{scheme}{separator}{''.join(parts)}",
    SCHEMES,
    st.sampled_from(["://", ":/", ":", "", "://u:p@h/"]),
    st.lists(PARTS, max_size=8),
)


def use(url: str) -> None:
    """Make of a URL all that can be made of one, without connecting to anything."""
    for make in (make_sink, consumer_for, parse_redis_url, lambda text: read_url(text, ["exchange"])):
        try:
            shown = repr(make(url))
        except ConfigurationError as error:
            shown = str(error)
        assert CORE not in shown
    assert CORE not in conceal_url(url)


@given(URLS.filter(lambda url: not url.startswith("memory")))
def test_any_url(url: str) -> None:
    use(url)
    conceal(url)
    urls_in(url)


WHERE = (
    "redis://LOGIN@h/0",
    "rediss://LOGIN@h:1/0?stream=s",
    "unix://LOGIN@/s",
    "redis+cluster://LOGIN@a,b",
    "amqp://LOGIN@h/v",
)
MORE = ("redis+sentinel://LOGIN@a,b/m/0", "amqps://LOGIN@[::1]:1/?exchange=x", "http://LOGIN@h", "LOGIN@h")
SPECIAL = st.text(st.sampled_from(" '\"@:/?#%&=+[]{},;é€\\~|<>^`ab1"), max_size=6)


@given(st.sampled_from(WHERE + MORE), SPECIAL, SPECIAL, st.text(max_size=4))
def test_a_password_in_its_place_is_not_told(where: str, before: str, after: str, user: str) -> None:
    """Escaped, it is any text."""
    use(where.replace("LOGIN", f"{quote(user, safe='')}:{quote(f'{before}{CORE}{after}', safe='')}"))


@given(st.sampled_from(WHERE + MORE), SPECIAL, SPECIAL)
def test_a_password_that_was_not_escaped_is_not_told(where: str, before: str, after: str) -> None:
    use(where.replace("LOGIN", f"app:{before}{CORE}{after}"))


def options() -> list[tuple[type[Any], str]]:
    return [(kind, name) for kind in (SinkOptions, PipelineOptions) for name in sorted(kind.names())]


@given(
    st.sampled_from(options()),
    st.one_of(st.text(max_size=12), st.integers(), st.floats(), st.none(), st.binary(), PARTS),
)
def test_any_value_of_an_option(option: tuple[type[Any], str], value: object) -> None:
    kind, name = option
    try:
        kind.from_mapping({name: value})
    except ConfigurationError as error:
        told = str(error)
    else:
        told = name
    assert name in told
