"""What a Redis URL means, and that one which cannot be used is refused with a reason and without its password."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.brokers.redis_url import REFUSED_OPTIONS, parse_redis_url
from streamll.errors import ConfigurationError
from streamll.sinks.redis import RedisOptions, RedisSink

OWN = RedisOptions.names()


def test_a_plain_url() -> None:
    address = parse_redis_url("redis://app:s3cret@db.example:7000/3?stream=events&client_name=x", OWN)
    assert address.kind == "single"
    assert address.url == "redis://app:s3cret@db.example:7000/3?client_name=x"
    assert address.nodes == (("db.example", 7000),)
    assert address.options == {"stream": "events"}
    assert address.shown == "redis://db.example:7000/3"
    assert "s3cret" not in repr(address)


@pytest.mark.parametrize(
    ("url", "parsed", "shown"),
    [
        ("redis://h", "redis://h:6379/0", "redis://h:6379/0"),
        ("redis://h/", "redis://h:6379/0", "redis://h:6379/0"),
        ("redis://h?db=4", "redis://h:6379/4", "redis://h:6379/4"),
        ("redis://[::1]:7000/1", "redis://[::1]:7000/1", "redis://[::1]:7000/1"),
        ("redis://[::1]", "redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("redis://:p%40ss%2Fword@h:1", "redis://:p%40ss%2Fword@h:1/0", "redis://h:1/0"),
        ("rediss://h?ssl_cert_reqs=none", "rediss://h:6379/0?ssl_cert_reqs=none", "rediss://h:6379/0"),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2", "unix:///run/redis.sock"),
        ("unix://app:pw@/run/redis.sock", "unix://app:pw@/run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_what_redis_py_is_given(url: str, parsed: str, shown: str) -> None:
    address = parse_redis_url(url)
    assert (address.kind, address.url, address.shown) == ("single", parsed, shown)


def test_a_cluster() -> None:
    address = parse_redis_url("rediss+cluster://app:pw@a:7000,b,[::1]:7002?stream={t}events", OWN)
    assert address.kind == "cluster"
    assert address.nodes == (("a", 7000), ("b", 6379), ("::1", 7002))
    assert address.url == "rediss://app:pw@a:7000/0"
    assert address.shown == "rediss+cluster://a:7000,b:6379,[::1]:7002/0"
    assert address.options == {"stream": "{t}events"}


def test_sentinels() -> None:
    address = parse_redis_url("redis+sentinel://app:pw@a,b:7001/primary/2?sentinel_password=hush&sentinel_username=me")
    assert (address.kind, address.service) == ("sentinel", "primary")
    assert address.nodes == (("a", 26_379), ("b", 7001))
    assert address.url == "redis://app:pw@a:26379/2"
    assert address.sentinel_credentials == ("me", "hush")
    assert address.shown == "redis+sentinel://a:26379,b:7001/primary/2"
    assert "hush" not in repr(address)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://h", "scheme 'http': must be one of redis, rediss"),
        ("redis://", "names no host"),
        ("redis://:6379/0", "names no host"),
        ("redis://h,,k", "names no host"),
        ("redis://h:port", "port must be a number from 1 to 65535"),
        ("redis://h:0", "port must be a number"),
        ("redis://h:70000", "port must be a number"),
        ("redis://[::1", "not well formed"),
        ("redis://h/zero", "db='zero': must be the number of a database"),
        ("redis://h/-1", "must be the number of a database"),
        ("redis://h?db=x", "must be the number of a database"),
        ("redis://h/0/1", "must be the number of a database"),
        ("redis://a,b", r"redis\+cluster:// or redis\+sentinel://"),
        ("redis+cluster://h/1", "a cluster has database 0 only"),
        ("redis+sentinel://h", "must name the service"),
        ("unix://", "path after three slashes"),
        ("unix://host/path", "path after three slashes"),
        ("unix:///run/s?db=x", "must be the number of a database"),
        ("redis://h?colour=red", "unknown option 'colour'; the options are: .*client_name.*stream"),
        ("redis://h?stream=a&stream=b", "'stream': is given twice"),
        ("redis://h?ssl_ca_certs=x", "needs TLS, that is rediss:// instead of redis://"),
        ("rediss://h?ssl_cert_reqs=maybe", "must be one of none, optional, required"),
        ("rediss://h?ssl_min_version=new", "must be a whole number"),
        ("redis://h?socket_keepalive=perhaps", "must be one of true, false"),
        ("unix:///s?socket_keepalive=true", "unknown option 'socket_keepalive'"),
        ("redis://h?sentinel_password=x", "unknown option 'sentinel_password'"),
        ("redis://h#x", "written %2F, %3F, %23"),
    ],
)
def test_a_url_that_cannot_be_used(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_redis_url(url, OWN)


@pytest.mark.parametrize("name", REFUSED_OPTIONS)
def test_options_of_redis_py_that_only_the_sink_can_decide(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{name}': "):
        parse_redis_url(f"redis://h?{name}=1")


@pytest.mark.parametrize(
    "url",
    [
        "redis://app:s3cret@:7000",
        "redis://app:s3cret@h:port",
        "redis://app:s3cret",
        "redis://s3cret:s3cret:6379",
        "redis://app:/s3cret@h",
        "redis://app:x/s3cret@h",
        "redis://app:1/s3cret@h",
        "redis://app:1?s3cret@h",
        "redis://app:1#s3cret@h",
        "redis://app:s3cret@h/db",
        "redis://app:s3cret@h?nothing=1",
        "rediss://h?ssl_password=s3cret&ssl_password=s3cret",
        "unix://:s3cret@/run/redis.sock?db=x",
        "redis+sentinel://:s3cret@h",
        "http://:s3cret@h",
    ],
)
def test_no_message_shows_a_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisSink(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


@given(st.text(max_size=40, alphabet="redis:/@?#[],.%=&0a\\ "))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    try:
        address = parse_redis_url("redis://" + text, OWN)
    except ConfigurationError:
        return
    # What was understood is understood the same when it is read again.
    again = parse_redis_url(address.url, OWN)
    assert (again.nodes, again.shown) == (address.nodes, address.shown)


def test_a_url_that_is_no_text() -> None:
    url: Any = 5
    with pytest.raises(ConfigurationError, match="must be a string, not a int"):
        parse_redis_url(url)


# The sink


def test_the_stream_has_two_names() -> None:
    assert RedisSink("redis://h?stream=a").destination == "redis://h:6379/0 stream a"
    assert RedisSink("redis://h?stream=a", stream="b").destination == "redis://h:6379/0 stream b"
    assert RedisSink("redis://h", stream_key="c").destination == "redis://h:6379/0 stream c"
    assert RedisSink().destination == "redis://localhost:6379/0 stream streamll"
    with pytest.raises(ConfigurationError, match="stream_key='b' is given too"):
        RedisSink("redis://h?stream=a", stream_key="b")


def test_options_are_divided_and_checked() -> None:
    sink = RedisSink.from_url("redis://h?buffer_size=50&name=mine&max_stream_length=7", batch_size=9)
    assert (sink.name, sink.options.buffer_size, sink.options.batch_size) == ("mine", 50, 9)
    assert RedisSink("redis://h?name=mine", name="other").name == "other"
    for url, message in {
        "redis://h?fence=none": "fence='none': must be one of auto, script, transaction",
        "redis://h?max_stream_length=-1": "max_stream_length='-1'",
        "redis://h?stream=": "a stream needs a key",
        "redis://h?stream=a}b": "no other key can share its slot",
        "redis+cluster://h?stream=a&dead_letter_stream=b": "must be in the slot of stream='a'",
    }.items():
        with pytest.raises(ConfigurationError, match=message):
            RedisSink(url)
    with pytest.raises(ConfigurationError, match="unknown option 'colour'"):
        RedisSink("redis://h", colour="red")


def test_a_client_that_cannot_be_used() -> None:
    import redis
    import redis.asyncio

    with pytest.raises(ConfigurationError, match=r"must be a redis\.Redis or redis\.RedisCluster, not a str"):
        RedisSink(client="redis://h")
    with pytest.raises(ConfigurationError, match="asyncio"):
        RedisSink(client=redis.asyncio.Redis())
    with pytest.raises(ConfigurationError, match="given together with url"):
        RedisSink("redis://h", client=redis.Redis())


def test_where_a_client_leads_is_said_without_its_password() -> None:
    import redis
    from redis.sentinel import Sentinel

    sentinel: Any = Sentinel
    finder = sentinel([("h", 1)])
    for client, shown in (
        (redis.Redis(host="h", port=7000, db=2, password="s3cret"), "redis://h:7000/2 stream streamll"),
        (redis.Redis(unix_socket_path="/run/redis.sock"), "unix:///run/redis.sock stream streamll"),
        (finder.master_for("primary", password="s3cret"), "redis sentinel service primary stream streamll"),
    ):
        assert RedisSink(client=client).destination == shown


def test_nothing_is_imported_for_a_sink_that_has_nothing_to_do() -> None:
    program = (
        "import sys; from streamll.sinks.redis import RedisSink; RedisSink('redis://h?stream=a');"
        "print([name for name in ('redis', 'hiredis', 'tenacity', 'streamll.sinks.redis_check') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
