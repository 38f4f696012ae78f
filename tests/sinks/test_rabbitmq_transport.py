"""RabbitMQTransport on real brokers: what arrives, what is refused, and what happens between batches."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pika
import pytest

from streamll.delivery.outcome import BatchOutcome, Failure
from streamll.errors import FatalError, UnavailableError
from streamll.wire.entry import WireEntry
from streamll.wire.rabbitmq import decode_message
from tests.fixtures.process import free_port
from tests.fixtures.rabbitmq import PASSWORD, RabbitMQEndpoint, RabbitMQServer
from tests.fixtures.tls import TLSFiles
from tests.sinks.rabbitmq_tools import (
    LARGEST_MESSAGE,
    PRODUCER,
    Broker,
    MakeTransport,
    Poor,
    deliver,
    entries,
    entry,
    soon,
)

pytestmark = [pytest.mark.rabbitmq, pytest.mark.integration, pytest.mark.timeout(180)]


# What arrives


def test_a_batch_arrives_as_documented(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    transport = make_rabbitmq(
        broker.url, exchange=broker.name, queue=broker.name, routing_key="app.{event_type}.{level}"
    )
    outcome = transport.send(entries(1, 3), soon())
    assert outcome == BatchOutcome()
    messages = broker.messages()
    assert [body for _, _, body in messages] == [b"event 1", b"event 2", b"event 3"]
    method, properties, _ = messages[0]
    assert (method.exchange, method.routing_key) == (broker.name, "app.token.info")
    assert (properties.content_type, properties.delivery_mode) == ("application/msgpack", 2)
    assert (properties.message_id, properties.timestamp, properties.type) == (f"{PRODUCER}:1", 1_700_000_000, "token")
    assert properties.headers == {
        "event_type": "token",
        "operation": "generate",
        "module_name": "app",
        "method_name": "answer",
        "level": "info",
    }


@pytest.mark.parametrize(("window", "size"), [(1, 20), (7, 300), (1000, 2500)])
def test_a_batch_larger_than_the_window_keeps_its_order(
    broker: Broker, make_rabbitmq: MakeTransport, window: int, size: int
) -> None:
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name, confirm_window=window)
    assert transport.send(entries(1, size), soon(30)) == BatchOutcome()
    assert transport.send(entries(size + 1, size + 5), soon()) == BatchOutcome()
    assert broker.numbers() == list(range(1, size + 6))


def test_large_events_arrive_whole(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name)
    payloads = [os.urandom(size) for size in (1, 131_064, 131_065, 1_500_000)]
    batch = [entry(seq, payload=payload) for seq, payload in enumerate(payloads, 1)]
    assert transport.send(batch, soon(30)) == BatchOutcome()
    assert [found.payload for found in broker.entries()] == payloads


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_queue_can_be_declared(broker: Broker, make_rabbitmq: MakeTransport, queue_type: str) -> None:
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name, queue_type=queue_type)
    assert transport.send(entries(1, 50), soon()) == BatchOutcome()
    assert broker.numbers() == list(range(1, 51))
    again = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name, queue_type="classic")
    assert again.send(entries(51, 52), soon()) == BatchOutcome()


def test_a_stream_can_be_declared(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name, queue_type="stream")
    assert transport.send(entries(1, 50), soon()) == BatchOutcome()
    found: list[int] = []
    with broker.channel() as channel:
        channel.basic_qos(prefetch_count=100)
        for _method, properties, body in channel.consume(
            broker.name, arguments={"x-stream-offset": "first"}, inactivity_timeout=10
        ):
            found.append(decode_message(body, properties.headers, properties.message_id).seq)
            if len(found) == 50:
                break
    assert found == list(range(1, 51))


def test_the_default_exchange_reaches_a_queue_by_its_name(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    transport = make_rabbitmq(broker.url, exchange="", queue=broker.name)
    assert transport.send(entries(1, 3), soon()) == BatchOutcome()
    assert broker.numbers() == [1, 2, 3]


def test_what_exists_is_used_as_it_is(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    with broker.channel() as channel:
        channel.exchange_declare(broker.name, "fanout", durable=False)
        channel.queue_declare(broker.name, durable=False, arguments={"x-max-length": 10})
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name, queue_type="quorum")
    assert transport.send(entries(1, 3), soon()) == BatchOutcome()
    assert broker.numbers() == [1, 2, 3]


def test_tls_with_an_authority_of_ones_own(
    own_rabbitmq: Callable[..., RabbitMQServer], tls_files: TLSFiles, make_rabbitmq: MakeTransport
) -> None:
    server = own_rabbitmq(tls=tls_files)
    transport = make_rabbitmq(f"{server.tls_url}?cacertfile={tls_files.authority}", queue="q")
    batch = [entry(seq, payload=os.urandom(100_000)) for seq in range(1, 11)]
    assert transport.send(batch, soon(30)) == BatchOutcome()
    assert Broker(server.url).numbers("q") == list(range(1, 11))
    shown = f"cacertfile={tls_files.authority}&certfile={tls_files.certificate}&keyfile={tls_files.key}"
    assert make_rabbitmq(f"{server.tls_url}?{shown}", queue="q").send(entries(11, 12), soon()) == BatchOutcome()
    with pytest.raises(FatalError, match="certificate verify failed"):
        make_rabbitmq(server.tls_url)


# What is refused for itself


def test_unroutable_events_are_rejected_and_the_others_delivered(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    transport = make_rabbitmq(
        broker.url, exchange=broker.name, queue=broker.name, binding_key="kept.#", routing_key="{operation}"
    )
    batch = [entry(seq, operation="kept.x" if seq % 3 else "lost") for seq in range(1, 31)]
    outcome = transport.send(batch, soon())
    assert outcome.failure is None
    assert set(outcome.rejected) == {place for place, one in enumerate(batch) if one.seq % 3 == 0}
    assert set(outcome.rejected.values()) == {
        f"unroutable: exchange {broker.name!r} has no queue for routing key 'lost' (312 NO_ROUTE)"
    }
    assert broker.numbers() == [seq for seq in range(1, 31) if seq % 3]


def test_dead_letters_keep_their_bytes_and_the_reason(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name)
    batch = [entry(1), entry(2, payload=b"\xc1 broken", dead_letter="unroutable: nobody"), entry(3)]
    assert transport.send(batch, soon()) == BatchOutcome()
    assert transport.send([entry(4, dead_letter="too large")], soon()) == BatchOutcome()
    assert broker.numbers() == [1, 3]
    assert broker.entries(f"{broker.name}.dead-letter") == [
        WireEntry(b"\xc1 broken", PRODUCER, 2, "unroutable: nobody"),
        WireEntry(b"event 4", PRODUCER, 4, "too large"),
    ]


def test_an_exchange_for_dead_letters_that_exists_is_left_alone(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    graveyard = f"{broker.name}.dead-letter"
    with broker.channel() as channel:
        channel.exchange_declare(graveyard, "topic")
        transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name)
        lost = transport.send([entry(1, dead_letter="x"), entry(2)], soon())
        assert "unroutable" in lost.rejected[0]
        channel.queue_bind(broker.name, graveyard, "#")
        assert transport.send([entry(3, dead_letter="y")], soon()) == BatchOutcome()
    assert broker.entries() == [WireEntry(b"event 2", PRODUCER, 2, ""), WireEntry(b"event 3", PRODUCER, 3, "y")]


def test_what_is_larger_than_the_broker_takes_is_found_without_halving(
    hurt_broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    transport = make_rabbitmq(hurt_broker.url, exchange=hurt_broker.name, queue=hurt_broker.name)
    batch = [entry(seq, payload=b"x" * (LARGEST_MESSAGE + 1 if seq in (3, 5) else 100)) for seq in range(1, 8)]
    outcome = transport.send(batch, soon())
    assert outcome.failure is Failure.REJECTED
    assert set(outcome.rejected) == {2, 4}
    assert "larger than configured max size" in outcome.rejected[2]
    assert not transport.is_open
    deliver(transport, [one for place, one in enumerate(batch) if place not in outcome.rejected])
    assert set(hurt_broker.numbers()) == {1, 2, 4, 6, 7}


# What is refused for now


def test_a_nack_is_tried_again_and_the_rest_is_delivered(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    with broker.channel() as channel:
        channel.queue_declare(broker.name, durable=True, arguments={"x-max-length": 5, "x-overflow": "reject-publish"})
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name)
    batch = entries(1, 20)
    outcome = transport.send(batch, soon())
    assert outcome.failure is Failure.UNAVAILABLE
    assert "nack" in outcome.error
    assert transport.is_open  # every message has its answer
    first = {batch[place].seq for place in outcome.delivered}
    assert set(broker.numbers()) == first
    assert 0 < len(first) < 20
    left = [one for one in batch if one.seq not in first][:5]
    assert transport.send(left, soon()) == BatchOutcome()
    assert broker.numbers() == [one.seq for one in left]


def test_an_exchange_that_vanishes_is_declared_again(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name)
    with broker.channel() as channel:
        channel.exchange_delete(broker.name)
    outcome = transport.send(entries(1, 5), soon())
    assert (outcome.failure, outcome.delivered, transport.is_open) == (Failure.UNAVAILABLE, frozenset(), False)
    assert "no exchange" in outcome.error
    deliver(transport, entries(1, 5))
    assert broker.numbers() == [1, 2, 3, 4, 5]


def test_what_may_not_be_declared_must_exist(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    transport = make_rabbitmq(broker.url, exchange=broker.name, declare="false")
    outcome = transport.send(entries(1, 2), soon())
    assert outcome.failure is Failure.FATAL
    assert "no exchange" in outcome.error
    with broker.channel() as channel:
        channel.exchange_declare(broker.name, "topic")
        channel.queue_declare(broker.name)
        channel.queue_bind(broker.name, broker.name, "#")
    transport.open(soon())
    assert transport.send(entries(1, 2), soon()) == BatchOutcome()
    outcome = transport.send([entry(3, dead_letter="x")], soon())
    assert outcome.failure is Failure.REJECTED
    assert "no exchange" in outcome.rejected[0]
    transport.open(soon())
    assert transport.send([entry(4)], soon()) == BatchOutcome()


# Getting in


def test_a_wrong_password_is_fatal_and_is_not_shown(
    rabbitmq_server: RabbitMQEndpoint, make_rabbitmq: MakeTransport
) -> None:
    url = pika.URLParameters(rabbitmq_server.url)
    wrong = f"amqp://nobody:hunter2@{url.host}:{url.port}"
    with pytest.raises(FatalError, match="ACCESS_REFUSED") as caught:
        make_rabbitmq(wrong)
    assert "hunter2" not in str(caught.value)


def test_a_virtual_host_that_is_not_there_is_fatal(hurt_rabbitmq: RabbitMQServer, make_rabbitmq: MakeTransport) -> None:
    with pytest.raises(FatalError, match="vhost nowhere not found"):
        make_rabbitmq(hurt_rabbitmq.url.replace("%2F", "nowhere"))


def test_a_dead_port_is_unavailable_at_once(make_rabbitmq: MakeTransport) -> None:
    started = time.monotonic()
    transport = make_rabbitmq(f"amqp://127.0.0.1:{free_port()}", opened=False)
    with pytest.raises(UnavailableError, match="Connection refused"):
        transport.open(soon())
    assert not transport.is_open
    assert time.monotonic() - started < 5
    assert transport.send(entries(1, 2), soon()) == BatchOutcome(
        Failure.UNAVAILABLE, sent=False, error=f"{transport._address.host}: not connected"
    )


def test_a_server_that_does_not_answer_is_given_up_at_the_deadline(make_rabbitmq: MakeTransport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        transport = make_rabbitmq(f"amqp://127.0.0.1:{deaf.getsockname()[1]}", opened=False)
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="no answer in time"):
            transport.open(soon(0.5))
        assert 0.4 < time.monotonic() - started < 3


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"AMQP\x00\x01\x00\x00",  # "I speak another version"
        b"\x01\x00\x00\x00\x00\x00\x01X\x00",  # a frame without its end
        b"\x01\x00\x00\x00\x00\x00\x04\xff\xff\xff\xff\xce",  # a method that does not exist
    ],
)
def test_a_server_of_another_kind_is_unavailable(make_rabbitmq: MakeTransport, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def serve() -> None:
            peer, _ = other.accept()
            with peer:
                peer.recv(100)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        transport = make_rabbitmq(f"amqp://127.0.0.1:{other.getsockname()[1]}", opened=False)
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            transport.open(soon(10))
        assert time.monotonic() - started < 8
        thread.join(10)


def test_a_name_is_looked_up_where_no_thread_can_start(
    broker: Broker, make_rabbitmq: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    transport = make_rabbitmq(broker.url, opened=False, exchange=broker.name, queue=broker.name)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        transport.open(soon())
        assert transport.send(entries(1, 3), soon()) == BatchOutcome()
    assert broker.numbers() == [1, 2, 3]


def test_a_name_that_does_not_exist_is_unavailable(make_rabbitmq: MakeTransport) -> None:
    with pytest.raises(UnavailableError, match=r"no-such-host\.invalid"):
        make_rabbitmq("amqp://no-such-host.invalid")


def test_a_certificate_file_that_is_not_there_is_fatal(make_rabbitmq: MakeTransport) -> None:
    with pytest.raises(FatalError, match="No such file"):
        make_rabbitmq("amqps://localhost?cacertfile=/nowhere.pem")


def test_a_user_who_may_only_write_can_deliver(
    hurt_rabbitmq: RabbitMQServer, hurt_broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    name = hurt_broker.name
    poor = Poor(hurt_rabbitmq, "^$", f"^{name}$", "^$")
    with pytest.raises(FatalError, match=f"exchange '{name}' does not exist and cannot be declared"):
        make_rabbitmq(poor.url, exchange=name)
    make_rabbitmq(hurt_rabbitmq.url, exchange=name, queue=name)
    with pytest.raises(FatalError, match="queue 'other' does not exist and cannot be declared"):
        make_rabbitmq(poor.url, exchange=name, queue="other")
    transport = make_rabbitmq(poor.url, exchange=name, queue=name)
    assert transport.send(entries(1, 3), soon()) == BatchOutcome()
    # There is no place for dead letters, and no right to make one: that must not hold up the others.
    outcome = transport.send([entry(4), entry(5, dead_letter="x")], soon())
    assert (outcome.failure, outcome.sent, set(outcome.rejected)) == (Failure.REJECTED, False, {1})
    assert "cannot be declared" in outcome.rejected[1]
    assert transport.send([entry(4), entry(6)], soon()) == BatchOutcome()
    # There is one, but not for this user.
    with hurt_broker.channel() as channel:
        channel.exchange_declare(f"{name}.dead-letter", "fanout")
    transport.open(soon())
    outcome = transport.send([entry(7), entry(8, dead_letter="x")], soon())
    assert (outcome.failure, set(outcome.rejected)) == (Failure.REJECTED, {1})
    assert "ACCESS_REFUSED" in outcome.rejected[1]
    assert [seq for seq in hurt_broker.numbers() if seq != 7] == [1, 2, 3, 4, 6]


def test_a_user_who_may_not_write_is_told_so(
    hurt_rabbitmq: RabbitMQServer, hurt_broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    make_rabbitmq(hurt_rabbitmq.url, exchange=hurt_broker.name, queue=hurt_broker.name)
    transport = make_rabbitmq(Poor(hurt_rabbitmq, "^$", "^$", "^$").url, exchange=hurt_broker.name)
    outcome = transport.send(entries(1, 3), soon())
    assert outcome.failure is Failure.FATAL
    assert "ACCESS_REFUSED" in outcome.error
    assert hurt_broker.count() == 0


# Between batches


def test_heartbeats_are_kept_by_idling(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    served = make_rabbitmq(f"{broker.url}?heartbeat=1", exchange=broker.name, queue=broker.name)
    neglected = make_rabbitmq(f"{broker.url}?heartbeat=1", exchange=broker.name)
    assert served.service_interval == 0.25
    until = soon(6)
    while time.monotonic() < until:
        time.sleep(0.25)
        served.idle(0)
    assert served.is_open
    assert served.send(entries(1, 3), soon()) == BatchOutcome()
    assert broker.numbers() == [1, 2, 3]
    neglected.idle(0.2)
    assert not neglected.is_open  # so the time was long enough to tell


def test_without_heartbeats_the_connection_is_still_looked_after(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    assert make_rabbitmq(f"{broker.url}?heartbeat=0", exchange=broker.name).service_interval == 10.0
    assert make_rabbitmq(f"{broker.url}?heartbeat=600", exchange=broker.name).service_interval == 10.0


def test_interrupt_ends_what_waits_and_nothing_else(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        transport = make_rabbitmq(f"amqp://127.0.0.1:{deaf.getsockname()[1]}", opened=False)
        threading.Timer(0.2, transport.interrupt).start()
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="interrupted"):
            transport.open(soon(30))
        assert time.monotonic() - started < 3
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name)
    threading.Timer(0.2, transport.interrupt).start()
    started = time.monotonic()
    transport.idle(30)
    assert time.monotonic() - started < 3
    assert transport.is_open
    assert transport.send(entries(1, 2), soon()) == BatchOutcome()
    transport.interrupt()
    with pytest.raises(UnavailableError, match="interrupted"):
        transport.open(soon())
    transport.open(soon())
    assert transport.is_open


def test_nothing_is_sent_when_the_time_is_over_already(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name)
    for interrupted, deadline in ((False, soon(-1)), (True, soon())):
        if interrupted:
            transport.interrupt()
        outcome = transport.send(entries(1, 3), deadline)
        assert (outcome.failure, outcome.sent, transport.is_open) == (Failure.UNAVAILABLE, False, True)
    assert transport.send(entries(1, 3), soon()) == BatchOutcome()
    assert broker.numbers() == [1, 2, 3]


def test_closing_is_allowed_in_any_state(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    transport = make_rabbitmq(broker.url, opened=False, exchange=broker.name)
    transport.close(clean=True)
    transport.idle(0)
    transport.interrupt()
    with pytest.raises(UnavailableError):
        transport.open(soon())
    transport.open(soon())
    transport.close(clean=True)
    transport.close(clean=False)
    assert not transport.is_open
    transport.open(soon())
    assert transport.is_open


def test_a_connection_may_move_from_thread_to_thread(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name)
    outcomes: list[BatchOutcome] = []
    for first in (1, 11, 21):
        thread = threading.Thread(
            target=lambda first=first: outcomes.append(transport.send(entries(first, first + 9), soon()))
        )
        thread.start()
        thread.join(20)
    assert outcomes == [BatchOutcome()] * 3
    assert broker.numbers() == list(range(1, 31))


def test_no_descriptor_is_left_behind(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0

    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name)
    dead = make_rabbitmq(f"amqp://127.0.0.1:{free_port()}", opened=False)
    transport.close(clean=True)
    before = descriptors()
    for clean in (True, False, True, False):
        transport.open(soon())
        transport.send(entries(1, 3), soon())
        transport.close(clean)
        with pytest.raises(UnavailableError):
            dead.open(soon())
        dead.close(clean=False)
    assert descriptors() <= before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_leaves_the_connection_to_its_parent(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            transport.close(clean=True)
            transport.interrupt()
            code = 0 if not transport.is_open else 2
        os.kill(os.getpid(), signal.SIGKILL) if code else os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0
    transport.idle(0.1)
    assert transport.is_open
    assert transport.send(entries(1, 5), soon()) == BatchOutcome()
    assert broker.numbers() == [1, 2, 3, 4, 5]


def test_a_dead_broker_prints_nothing_where_logging_is_not_set_up() -> None:
    program = f"""
import time
from streamll.errors import UnavailableError
from streamll.brokers.rabbitmq_url import read_url
from streamll.sinks.rabbitmq_options import RabbitMQOptions
from streamll.sinks.rabbitmq_transport import RabbitMQTransport
options = RabbitMQOptions()
transport = RabbitMQTransport(read_url("amqp://u:{PASSWORD}@127.0.0.1:{free_port()}", options.names()), options, "p")
for _ in range(3):
    try:
        transport.open(time.monotonic() + 5)
    except UnavailableError:
        transport.close(clean=False)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
