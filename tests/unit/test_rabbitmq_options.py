"""What a RabbitMQ sink accepts as options and URL, and how it refuses the rest; and how confirms are counted."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.brokers.rabbitmq_errors import failure_of
from streamll.brokers.rabbitmq_url import Address, read_url
from streamll.delivery.outcome import Failure
from streamll.errors import ConfigurationError
from streamll.sinks.rabbitmq_confirms import Confirms
from streamll.sinks.rabbitmq_options import RabbitMQOptions

OURS = RabbitMQOptions.names()


def test_a_url_is_taken_apart() -> None:
    address = read_url("amqp://me:s%40fe@broker:5673/my%2Fhost?exchange=app&heartbeat=5&queue=q", OURS)
    assert address.url == "amqp://me:s%40fe@broker:5673/my%2Fhost?heartbeat=5"
    assert (address.host, address.vhost, address.scheme) == ("broker:5673", "my/host", "amqp")
    assert address.options == {"exchange": "app", "queue": "q"}
    assert address.shown == "amqp://broker:5673/my/host"
    assert "s%40fe" not in repr(address)


@pytest.mark.parametrize(
    ("url", "host", "vhost"),
    [
        ("amqp://localhost", "localhost:5672", "/"),
        ("amqp://localhost/", "localhost:5672", "/"),
        ("amqp://localhost/%2F", "localhost:5672", "/"),
        ("amqps://localhost/app", "localhost:5671", "app"),
        ("amqp://", "localhost:5672", "/"),
        ("amqp:///app", "localhost:5672", "app"),
        ("AMQP://localhost", "localhost:5672", "/"),
        ("amqp://[::1]:5673", "[::1]:5673", "/"),
        ("amqp://u:@localhost", "localhost:5672", "/"),
    ],
)
def test_what_a_url_leaves_out_has_a_default(url: str, host: str, vhost: str) -> None:
    address = read_url(url, OURS)
    assert (address.host, address.vhost) == (host, vhost)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@localhost",
        "amqp:me:hunter2@localhost",
        "me:hunter2@localhost",
        "amqp://me:hunter2@localhost:port",
        "amqp://me:hunter2@localhost:99999",
        "amqp://me:hunter2#x@localhost",
        "amqp://me:hunter2@localhost/#x",
        "amqp://me:hunter2/x@localhost",
        "amqp://me:hunter2?x@localhost",
        "amqp://hunter2@localhost",
        "amqp://me:hunter2@[localhost",
        "amqp://me:hunter2@localhost/a/b",
        "amqp://me:hunter2@localhost?exchnge=app",
        "amqp://me:hunter2@localhost?exchange=a&exchange=b",
        "amqp://me:hunter2@localhost?heartbeat=often",
        "amqp://me:hunter2@localhost?heartbeat=-1",
        "amqp://me:hunter2@localhost?frame_max=10",
        "amqp://me:hunter2@localhost?ssl_options={'password':'hunter2'",
        "amqp://me:hunter2@localhost?ssl_options='hunter2'",
        "amqp://me:hunter2@localhost?retry_delay=3",
    ],
)
def test_a_bad_url_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_url(url, OURS)
    shown: BaseException | None = caught.value
    while shown is not None:
        assert "hunter2" not in str(shown)
        shown = shown.__cause__


def test_an_unknown_option_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"exchnge.*confirm_window.*exchange.*heartbeat"):
        read_url("amqp://localhost?exchnge=app", OURS)


@pytest.mark.parametrize(
    ("options", "key", "binding", "dead_letters"),
    [
        ({}, "{event_type}", "#", "streamll.dead-letter"),
        ({"exchange": "app", "routing_key": "x.{level}"}, "x.{level}", "#", "app.dead-letter"),
        ({"exchange": "", "queue": "jobs{1}"}, "jobs{{1}}", "#", "streamll.dead-letter"),
        ({"exchange": "amq.topic"}, "{event_type}", "#", "streamll.amq.topic.dead-letter"),
        ({"exchange": "", "routing_key": "jobs"}, "jobs", "#", "streamll.dead-letter"),
        ({"exchange_type": "direct", "queue": "q", "routing_key": "fixed"}, "fixed", "fixed", "streamll.dead-letter"),
        ({"queue": "q", "binding_key": "a.*", "dead_letter_exchange": "dl"}, "{event_type}", "a.*", "dl"),
    ],
)
def test_defaults_follow_from_what_is_given(options: dict[str, Any], key: str, binding: str, dead_letters: str) -> None:
    read = RabbitMQOptions(**options)
    assert (read.key_template, read.binding, read.dead_letter_name) == (key, binding, dead_letters)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"exchange": "e" * 256}, "exchange"),
        ({"exchange": "e" * 250}, "dead_letter_name"),
        ({"queue": "é" * 128}, "queue"),
        ({"exchange": "\ud800"}, "exchange"),
        ({"exchange": ""}, "exchange"),
        ({"exchange": "app", "dead_letter_exchange": "app"}, "dead_letter_exchange"),
        ({"exchange_type": "direct", "queue": "q"}, "binding_key"),
        ({"exchange_type": "fan"}, "topic, direct, fanout, headers"),
        ({"queue_type": "lazy"}, "classic, quorum, stream"),
        ({"routing_key": "{user}"}, "routing_key"),
        ({"confirm_window": 0}, "confirm_window"),
        ({"confirm_timeout": 0}, "confirm_timeout"),
        ({"keyfile": "key.pem"}, "certfile"),
    ],
)
def test_options_that_could_not_work_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        RabbitMQOptions(**options)


def test_configuring_does_not_import_pika() -> None:
    program = (
        "import sys; from streamll.brokers.rabbitmq_url import *; from streamll.sinks.rabbitmq_options import *;"
        "from streamll.sinks.rabbitmq_transport import *;"
        "o = RabbitMQOptions(); RabbitMQTransport(read_url('amqp://localhost?heartbeat=5', o.names()), o, 'p');"
        "assert 'pika' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


@pytest.mark.parametrize(
    ("code", "text", "failure"),
    [
        (403, "ACCESS_REFUSED - Login was refused", Failure.FATAL),
        (530, "NOT_ALLOWED - vhost nowhere not found", Failure.FATAL),
        (
            530,
            "NOT_ALLOWED - access to vhost '/' refused for user 'u': connection limit (1) is reached",
            Failure.UNAVAILABLE,
        ),
        (540, "NOT_IMPLEMENTED", Failure.FATAL),
        (503, "COMMAND_INVALID - unknown exchange type", Failure.FATAL),
        (406, "PRECONDITION_FAILED - message size 9 is larger than configured max size 8", Failure.REJECTED),
        (311, "CONTENT_TOO_LARGE", Failure.REJECTED),
        (320, "CONNECTION_FORCED - broker forced connection closure", Failure.UNAVAILABLE),
        (404, "NOT_FOUND - no exchange", Failure.UNAVAILABLE),
        (541, "INTERNAL_ERROR", Failure.UNAVAILABLE),
        (None, "", Failure.UNAVAILABLE),
    ],
)
def test_reply_codes_are_failures_of_a_kind(code: int | None, text: str, failure: Failure) -> None:
    assert failure_of(code, text) is failure


def test_confirms_are_counted_by_position() -> None:
    confirms = Confirms(first_tag=101, size=6)
    confirms.feed(4)
    confirms.answer(102, multiple=False, acked=True)
    confirms.answer(103, multiple=True, acked=False)
    assert (confirms.waiting, confirms.nacked) == (1, 2)
    assert confirms.delivered() == {1}
    assert confirms.unanswered() == [3]
    confirms.returned[3] = "unroutable"
    confirms.answer(104, multiple=False, acked=True)
    assert confirms.delivered() == {1}
    assert confirms.complete is False
    confirms.feed(2)
    confirms.answer(106, multiple=True, acked=True)
    assert confirms.delivered() == {1, 4, 5}
    assert (confirms.waiting, confirms.fed) == (0, 6)


def test_answers_for_other_messages_change_nothing() -> None:
    confirms = Confirms(first_tag=11, size=5)
    confirms.feed(2)
    for tag in (1, 10, 13, 14, 99):
        confirms.answer(tag, multiple=False, acked=True)
    confirms.answer(10, multiple=True, acked=True)
    assert confirms.waiting == 2
    confirms.answer(99, multiple=True, acked=True)  # all that were fed, and no more
    assert confirms.waiting == 0
    assert confirms.delivered() == {0, 1}


@given(
    first=st.integers(1, 50),
    size=st.integers(0, 40),
    answers=st.lists(st.tuples(st.integers(0, 100), st.booleans(), st.booleans()), max_size=60),
)
def test_each_message_has_one_answer_whatever_comes(
    first: int, size: int, answers: list[tuple[int, bool, bool]]
) -> None:
    confirms = Confirms(first, size)
    confirms.feed(size)
    expected: dict[int, bool] = {}
    for tag, multiple, acked in answers:
        confirms.answer(tag, multiple, acked)
        for position in range(size):
            if position == tag - first or (multiple and position < tag - first):
                expected.setdefault(position, acked)
    assert confirms.delivered() == {position for position, acked in expected.items() if acked}
    assert confirms.nacked == sum(not acked for acked in expected.values())
    assert confirms.unanswered() == [position for position in range(size) if position not in expected]
    assert confirms.waiting == size - len(expected)
    assert confirms.complete == (len(expected) == size)


def test_an_address_can_be_shown() -> None:
    assert Address("amqps://u:p@h/v", "h:5671", "v", "amqps", {}).shown == "amqps://h:5671/v"
