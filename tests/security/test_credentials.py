"""Neither user nor password is shown anywhere, whatever the server does with them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from streamll.cli import main
from streamll.consumers import consumer_for
from streamll.errors import StreamllError
from streamll.models import StreamllEvent
from streamll.registry import make_sink
from tests.fixtures.process import free_port
from tests.fixtures.rabbitmq import RabbitMQEndpoint
from tests.fixtures.redis import RedisServer
from tests.fixtures.waiting import wait_until
from tests.security.witness import ANSWERS, CORE, LOGIN, PASSWORD, USER, Witness, strange_server, witness

_SECRET = quote(PASSWORD, safe="")
_PROPERTIES = urlencode({"client_properties": repr({"token": PASSWORD})})
_TLS = urlencode({"ssl_options": repr({"password": PASSWORD})})

URLS = {
    "redis": f"redis://{LOGIN}@127.0.0.1:PORT/0?stream=s",
    "redis by options": "redis://127.0.0.1:PORT/0?stream=s&" + urlencode({"username": USER, "password": PASSWORD}),
    "redis, password alone": f"redis://:{_SECRET}@127.0.0.1:PORT/0?stream=s",
    "rediss": f"rediss://{LOGIN}@127.0.0.1:PORT/0?stream=s&ssl_cert_reqs=none&ssl_password={_SECRET}",
    "unix": f"unix://{LOGIN}@SOCKET?stream=s",
    "cluster": f"redis+cluster://{LOGIN}@127.0.0.1:PORT?stream=s",
    "sentinel": f"redis+sentinel://{LOGIN}@127.0.0.1:PORT/primary/0?stream=s&"
    + urlencode({"sentinel_username": USER, "sentinel_password": PASSWORD}),
    "amqp": f"amqp://{LOGIN}@127.0.0.1:PORT/?exchange=x&queue=q&{_PROPERTIES}",
    "amqps": f"amqps://{LOGIN}@127.0.0.1:PORT/?exchange=x&queue=q",
    "amqps with a key": f"amqps://{LOGIN}@127.0.0.1:PORT/?exchange=x&queue=q&{_TLS}",
}

COMMANDS = (
    ["check"],
    ["check", "--json"],
    ["tail", "--no-follow"],
    ["tail", "--take", "--json", "--no-follow"],
    ["audit"],
    ["audit", "--drain", "--json"],
    ["replay"],
    ["replay", "--dry-run"],
)


def command(*words: str) -> str:
    """What a command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        main(words)
    return out.getvalue()


def observe(heard: Witness, url: str, spool: Path, commands: Sequence[Sequence[str]] = COMMANDS) -> None:
    """Use a URL in every way, and keep all that can be seen of it."""
    with contextlib.suppress(StreamllError):
        use_sink(heard, url, spool)
    try:
        with consumer_for(url, follow=False, timeout=0.3, connect_timeout=0.5, read_timeout=0.5) as consumer:
            heard.tell(consumer, consumer.shown, consumer.stats())
            for item in consumer:
                heard.tell(item)
    except StreamllError as error:
        heard.tell(error)
    separator = "&" if "?" in url else "?"
    for words in commands:
        patience = "" if words[0] in ("check", "replay") else "&read_timeout=0.5"
        heard.tell(command(*words, f"{url}{separator}connect_timeout=0.5{patience}"))


def use_sink(heard: Witness, url: str, spool: Path) -> None:
    outcomes: list[object] = []
    try:
        sink = make_sink(
            url,
            connect_timeout=0.5,
            send_timeout=0.5,
            durability="process",
            spool_dir=str(spool),
            segment_bytes=65536,
            spool_bytes=1 << 20,
            on_delivery=lambda *found: outcomes.append(found),
        )
    except StreamllError as error:
        heard.tell(error)
        raise
    heard.tell(sink, sink.destination)
    sink.handle_event(StreamllEvent(event_type="t", data={"n": 1}))
    wait_until(lambda: sink.stats().last_error or sink.stats().delivered)
    heard.look_at_threads()
    sink.stop(0.1)
    heard.tell(sink, sink.stats(), *outcomes)
    heard.look_into(spool)


@pytest.mark.parametrize("name", URLS)
def test_a_server_that_is_down(name: str, tmp_path: Path) -> None:
    url = URLS[name].replace("PORT", str(free_port())).replace("SOCKET", str(tmp_path / "no.sock"))
    with witness() as heard:
        observe(heard, url, tmp_path / "spool")


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", URLS)
def test_a_server_that_speaks_otherwise(name: str, answer: str, tmp_path: Path) -> None:
    """What it says may be what it heard: the login."""
    path = str(tmp_path / "a.sock") if name == "unix" else ""
    with strange_server(ANSWERS[answer], path) as port, witness() as heard:
        url = URLS[name].replace("PORT", str(port)).replace("SOCKET", path)
        observe(heard, url, tmp_path / "spool", COMMANDS[::2])


@pytest.fixture
def acl_redis(own_redis: Callable[..., RedisServer]) -> RedisServer:
    """A Redis with a user who may log in, and do nothing else."""
    server = own_redis(requirepass="another")
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", USER, "on", f">{PASSWORD}", "~none", "-@all", "+ping")
    return server


@pytest.mark.redis
@pytest.mark.parametrize("login", [f"{quote('x' + USER, safe='')}:{_SECRET}", f":{_SECRET}", f"{LOGIN}x"])
def test_redis_refuses_the_login(login: str, own_redis: Callable[..., RedisServer], tmp_path: Path) -> None:
    server = own_redis(requirepass="another")
    with witness() as heard:
        observe(heard, f"redis://{login}@127.0.0.1:{server.port}/0?stream=s", tmp_path / "spool")


@pytest.mark.redis
def test_redis_permits_nothing(acl_redis: RedisServer, tmp_path: Path) -> None:
    with witness() as heard:
        observe(heard, f"redis://{LOGIN}@127.0.0.1:{acl_redis.port}/0?stream=s", tmp_path / "spool")


@pytest.mark.redis
def test_redis_cannot_know_the_command(own_redis: Callable[..., RedisServer], tmp_path: Path) -> None:
    """A server where AUTH goes by another name quotes what it was sent."""
    server = own_redis(rename_command="AUTH hidden")
    with witness() as heard:
        observe(heard, f"redis://{LOGIN}@127.0.0.1:{server.port}/0?stream=s", tmp_path / "spool")


@pytest.mark.rabbitmq
def test_rabbitmq_refuses_the_login(rabbitmq_server: RabbitMQEndpoint, tmp_path: Path) -> None:
    place = rabbitmq_server.url.rpartition("@")[2]
    with witness() as heard:
        observe(heard, f"amqp://{LOGIN}@{place}?exchange=x&queue=q&{_PROPERTIES}", tmp_path / "spool")


@pytest.mark.redis
def test_a_login_that_works(own_redis: Callable[..., RedisServer], tmp_path: Path) -> None:
    """What goes well is told at length too."""
    server = own_redis()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", USER, "on", f">{PASSWORD}", "~*", "&*", "+@all")
    with witness() as heard:
        observe(heard, f"redis://{LOGIN}@127.0.0.1:{server.port}/0?stream=s", tmp_path / "spool")
        heard.tell(make_sink(f"redis://{LOGIN}@127.0.0.1:{server.port}/0?stream=s").stats())
    assert any("connected" in text or "delivered" in text for text in heard.said)


def test_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What STREAMLL_SINKS says and cannot be used; and what replay takes from it."""
    import streamll

    with witness() as heard:
        for text in (
            f"redis://{LOGIN}@:1, redis://h",
            f"rdis://{LOGIN}@h",
            f"redis://{LOGIN}@h?{CORE}@x=1",
            f"amqp://{LOGIN}@h:port/",
            f"redis://h/0?db=x&password={_SECRET}",
            LOGIN,
        ):
            monkeypatch.setenv("STREAMLL_SINKS", text)
            with pytest.raises(StreamllError) as caught:
                streamll.configure()
            heard.tell(caught.value)
            heard.tell(command("replay", str(tmp_path)))
    streamll.shutdown()
