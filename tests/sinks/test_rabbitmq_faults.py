"""RabbitMQTransport and a broker in trouble: nothing that was acknowledged is lost, and nobody waits too long."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pika
import pytest

from streamll.delivery.outcome import BatchOutcome, Failure
from streamll.errors import UnavailableError
from streamll.testing.proxy import TO_CLIENT, TO_SERVER, FaultProxy
from tests.fixtures.rabbitmq import RabbitMQServer
from tests.sinks.rabbitmq_tools import Broker, MakeTransport, deliver, entries, memory_alarm, soon

pytestmark = [pytest.mark.rabbitmq, pytest.mark.integration, pytest.mark.timeout(180)]


def test_a_killed_broker_loses_nothing_that_it_acknowledged(
    hurt_rabbitmq: RabbitMQServer, hurt_broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    transport = make_rabbitmq(hurt_rabbitmq.url, exchange=hurt_broker.name, queue=hurt_broker.name)
    killer = threading.Timer(0.15, hurt_rabbitmq.kill)
    killer.start()
    acknowledged: set[int] = set()
    batch, outcome = entries(1, 500), BatchOutcome()
    for first in range(1, 20_000, 500):
        batch = entries(first, first + 499)
        outcome = transport.send(batch, soon(20))
        acknowledged |= (
            {one.seq for one in batch} if outcome.failure is None else {batch[i].seq for i in outcome.delivered}
        )
        if outcome.failure is not None:
            break
    killer.join()
    assert outcome.failure is Failure.UNAVAILABLE
    assert not transport.is_open
    with pytest.raises(UnavailableError):
        transport.open(soon(2))
    hurt_rabbitmq.start()
    deliver(transport, [one for one in batch if one.seq not in acknowledged])
    assert acknowledged | {one.seq for one in batch} == set(hurt_broker.numbers())


def test_a_restarted_broker_is_found_again(
    hurt_rabbitmq: RabbitMQServer, hurt_broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    transport = make_rabbitmq(hurt_rabbitmq.url, exchange=hurt_broker.name, queue=hurt_broker.name)
    assert transport.send(entries(1, 10), soon()) == BatchOutcome()
    hurt_rabbitmq.restart()
    outcome = transport.send(entries(11, 20), soon())
    assert (outcome.failure, outcome.sent) == (Failure.UNAVAILABLE, False)  # it had said goodbye
    deliver(transport, entries(11, 20))
    assert hurt_broker.numbers() == list(range(1, 21))


def test_a_frozen_broker_is_given_up_at_the_deadline_and_found_again(
    hurt_rabbitmq: RabbitMQServer, hurt_broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    transport = make_rabbitmq(hurt_rabbitmq.url, exchange=hurt_broker.name, queue=hurt_broker.name)
    assert transport.send(entries(1, 5), soon()) == BatchOutcome()
    hurt_rabbitmq.freeze()
    started = time.monotonic()
    outcome = transport.send(entries(6, 10), soon(1))
    assert 0.9 < time.monotonic() - started < 4
    assert (outcome.failure, outcome.delivered, transport.is_open) == (Failure.UNAVAILABLE, frozenset(), False)
    assert "5 messages unconfirmed" in outcome.error
    with pytest.raises(UnavailableError):
        transport.open(soon(0.5))
    hurt_rabbitmq.thaw()
    deliver(transport, entries(6, 10))
    found = Counter(hurt_broker.numbers())
    assert set(found) == set(range(1, 11))
    assert set(found.values()) <= {1, 2}


def test_a_frozen_broker_holds_up_neither_an_interrupted_send_nor_a_close(
    hurt_rabbitmq: RabbitMQServer, hurt_broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    transport = make_rabbitmq(hurt_rabbitmq.url, exchange=hurt_broker.name, queue=hurt_broker.name)
    other = make_rabbitmq(hurt_rabbitmq.url, exchange=hurt_broker.name)
    hurt_rabbitmq.freeze()
    started = time.monotonic()
    interrupter = threading.Timer(0.3, transport.interrupt)
    interrupter.start()
    outcome = transport.send(entries(1, 5), soon(30))
    interrupter.join()
    assert outcome.failure is Failure.UNAVAILABLE
    assert "interrupted" in outcome.error
    assert time.monotonic() - started < 3
    started = time.monotonic()
    other.close(clean=True)
    transport.close(clean=True)
    assert time.monotonic() - started < 3
    assert not other.is_open


def test_an_alarm_stops_the_feeding_until_it_is_over(
    hurt_rabbitmq: RabbitMQServer, hurt_broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    transport = make_rabbitmq(hurt_rabbitmq.url, exchange=hurt_broker.name, queue=hurt_broker.name)
    with memory_alarm(hurt_rabbitmq) as end_of_alarm:
        for _ in range(2):
            outcome = transport.send(entries(1, 1000), soon(1))
            assert (outcome.failure, transport.is_open) == (Failure.UNAVAILABLE, False)
            assert "low on memory), 1 messages unconfirmed" in outcome.error  # one was a try; 999 were held back
            transport.open(soon())
        over = threading.Timer(0.5, end_of_alarm)
        over.start()
        assert transport.send(entries(1, 1000), soon(20)) == BatchOutcome()
        over.join()
    found = Counter(hurt_broker.numbers())
    assert set(found) == set(range(1, 1001))
    assert found.total() <= 1002


def test_an_alarm_costs_a_window_of_doubles_at_most(
    hurt_rabbitmq: RabbitMQServer, hurt_broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    transport = make_rabbitmq(hurt_rabbitmq.url, exchange=hurt_broker.name, queue=hurt_broker.name, confirm_window=100)
    assert transport.send(entries(1, 10), soon()) == BatchOutcome()
    with memory_alarm(hurt_rabbitmq):
        outcome = transport.send(entries(11, 1010), soon(1))
    assert (outcome.failure, outcome.delivered) == (Failure.UNAVAILABLE, frozenset())
    assert "low on memory), 100 messages unconfirmed" in outcome.error
    deliver(transport, entries(11, 1010))
    found = Counter(hurt_broker.numbers())
    assert set(found) == set(range(1, 1011))
    assert found.total() <= 1110


def test_a_connection_that_stays_blocked_is_given_up(
    hurt_rabbitmq: RabbitMQServer, hurt_broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    url = f"{hurt_rabbitmq.url}?blocked_connection_timeout=0.5"
    transport = make_rabbitmq(url, exchange=hurt_broker.name, queue=hurt_broker.name)
    with memory_alarm(hurt_rabbitmq):
        outcome = transport.send(entries(1, 5), soon(10))
        assert (outcome.failure, transport.is_open) == (Failure.UNAVAILABLE, False)
        assert "Blocked connection timeout" in outcome.error
        started = time.monotonic()
        transport.open(soon())
        transport.close(clean=True)
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("direction", "count"),
    [
        # Towards the server: in the handshake, the declarations, the first message, inside the batch.
        *[(TO_SERVER, count) for count in (5, 300, 550, 700, 850, 1_500, 30_000, 61_007, 100_000)],
        # Towards the client: in the handshake, and among the confirms.
        *[(TO_CLIENT, count) for count in (5, 540, 600, 640, 661, 682, 703)],
    ],
)
def test_a_cut_connection_loses_nothing(
    broker: Broker, make_rabbitmq: MakeTransport, direction: str, count: int
) -> None:
    server = pika.URLParameters(broker.url)
    with FaultProxy(server.host, server.port) as proxy:
        url = broker.url.replace(f"{server.host}:{server.port}", f"{proxy.host}:{proxy.port}")
        transport = make_rabbitmq(url, opened=False, exchange=broker.name, queue=broker.name)
        proxy.cut_after(count, direction)
        outcomes = deliver(transport, entries(1, 500))
        assert deliver(transport, entries(501, 510)) == [BatchOutcome()]
        assert proxy.accepted >= 2
        found = Counter(broker.numbers())
        assert set(found) == set(range(1, 511))
        assert max(found.values()) <= 2
        known = {place for outcome in outcomes for place in outcome.delivered}
        assert all(found[place + 1] == 1 for place in known)


def test_a_network_that_stalls_is_given_up_at_the_deadline(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    server = pika.URLParameters(broker.url)
    with FaultProxy(server.host, server.port) as proxy:
        url = broker.url.replace(f"{server.host}:{server.port}", f"{proxy.host}:{proxy.port}")
        transport = make_rabbitmq(url, exchange=broker.name, queue=broker.name)
        assert transport.send(entries(1, 5), soon()) == BatchOutcome()
        proxy.stall()
        outcome = transport.send(entries(6, 10), soon(0.5))
        assert (outcome.failure, outcome.sent, transport.is_open) == (Failure.UNAVAILABLE, True, False)
        proxy.heal()
        deliver(transport, entries(6, 10))
        assert set(broker.numbers()) == set(range(1, 11))


def test_a_dead_letter_exchange_that_cannot_be_asked_for_is_no_loss(
    broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    server = pika.URLParameters(broker.url)
    with FaultProxy(server.host, server.port) as proxy:
        url = broker.url.replace(f"{server.host}:{server.port}", f"{proxy.host}:{proxy.port}")
        transport = make_rabbitmq(url, exchange=broker.name, queue=broker.name)
        proxy.stall()
        outcome = transport.send(entries(1, 2, dead_letter="x"), soon(0.3))
        assert (outcome.failure, outcome.sent, transport.is_open) == (Failure.UNAVAILABLE, False, False)
        proxy.heal()
        deliver(transport, entries(1, 2, dead_letter="x"))
    assert broker.numbers(f"{broker.name}.dead-letter") == [1, 2]


def test_dead_letters_survive_a_cut_while_their_place_is_made(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    """Whoever was cut off between the exchange and its binding left a place that takes everything and keeps nothing."""
    server = pika.URLParameters(broker.url)
    with FaultProxy(server.host, server.port) as proxy:
        url = broker.url.replace(f"{server.host}:{server.port}", f"{proxy.host}:{proxy.port}")
        for count in range(20, 400, 30):
            transport = make_rabbitmq(url, exchange=broker.name, queue=broker.name)
            proxy.cut_after(count, TO_SERVER)
            outcomes = deliver(transport, entries(1, 2, dead_letter="x"))
            proxy.heal()
            assert all(not outcome.rejected for outcome in outcomes), f"cut after {count} bytes: {outcomes}"
            assert set(broker.numbers(f"{broker.name}.dead-letter")) == {1, 2}, f"cut after {count} bytes"
            transport.close(clean=True)
            broker.remove()
