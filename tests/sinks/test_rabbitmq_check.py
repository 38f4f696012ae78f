"""`RabbitMQSink.check_url` on real brokers: what it finds, and that it leaves nothing behind."""

from __future__ import annotations

import pytest

from streamll.errors import ConfigurationError
from streamll.sinks.base import Finding
from streamll.sinks.rabbitmq import RabbitMQSink
from tests.fixtures.process import free_port
from tests.fixtures.rabbitmq import RabbitMQServer
from tests.sinks.rabbitmq_tools import Broker, MakeTransport, Poor, memory_alarm

pytestmark = [pytest.mark.rabbitmq, pytest.mark.integration, pytest.mark.timeout(180)]


def levels(findings: list[Finding]) -> set[str]:
    return {finding.level for finding in findings}


def about(findings: list[Finding], words: str) -> Finding:
    found = [finding for finding in findings if words in finding.text]
    assert len(found) == 1, findings
    return found[0]


def test_a_broker_that_is_ready_is_found_so(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name)
    with broker.channel() as channel:
        channel.exchange_declare(f"{broker.name}.dead-letter", "fanout", durable=True)
    for query in (f"?exchange={broker.name}", f"?exchange={broker.name}&queue={broker.name}&buffer_size=100&name=x"):
        findings = RabbitMQSink.check_url(broker.url + query)
        assert levels(findings) == {"ok"}
        assert "RabbitMQ" in about(findings, "connected to").text
        assert "streamll_test" not in repr(findings)
    assert broker.count() == 0


def test_what_does_not_exist_yet_is_not_made(broker: Broker) -> None:
    findings = RabbitMQSink.check_url(f"{broker.url}?exchange={broker.name}")
    assert "declares it" in about(findings, f"exchange '{broker.name}' does not exist yet").text
    assert "queue=" in about(findings, "no queue is bound").remedy
    again = RabbitMQSink.check_url(f"{broker.url}?exchange={broker.name}&queue={broker.name}")
    assert levels(again) == {"ok"}
    assert "does not exist yet" in about(again, f"queue '{broker.name}'").text


def test_an_exchange_without_a_queue_is_a_warning(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    make_rabbitmq(broker.url, exchange=broker.name)
    findings = RabbitMQSink.check_url(f"{broker.url}?exchange={broker.name}")
    assert about(findings, "no queue takes messages").level == "warning"
    with broker.channel() as channel:
        channel.queue_declare(broker.name)
        channel.queue_bind(broker.name, broker.name, "#")
    findings = RabbitMQSink.check_url(f"{broker.url}?exchange={broker.name}&routing_key=a.{{event_type}}")
    assert about(findings, "a queue takes messages with routing key 'a.streamll-check'").level == "ok"
    assert broker.count() == 0


def test_what_exists_in_another_form_is_a_warning(broker: Broker) -> None:
    with broker.channel() as channel:
        channel.exchange_declare(broker.name, "fanout", durable=True)
        channel.queue_declare(broker.name, durable=False)
    findings = RabbitMQSink.check_url(f"{broker.url}?exchange={broker.name}&queue={broker.name}")
    assert "inequivalent arg 'type'" in about(findings, f"exchange '{broker.name}' exists, but").text
    assert "inequivalent arg 'durable'" in about(findings, f"queue '{broker.name}' exists, but").text


def test_nothing_is_declared_where_that_is_not_wanted(broker: Broker) -> None:
    findings = RabbitMQSink.check_url(f"{broker.url}?exchange={broker.name}&queue={broker.name}&declare=false")
    assert [finding.level for finding in findings] == ["ok", "error", "error", "warning"]
    assert "declare a durable topic exchange" in findings[1].remedy


def test_the_default_exchange_needs_no_declaration(broker: Broker) -> None:
    with broker.channel() as channel:
        channel.queue_declare(broker.name)
    findings = RabbitMQSink.check_url(f"{broker.url}?exchange=&routing_key={broker.name}")
    assert about(findings, f"a queue takes messages with routing key '{broker.name}'").level == "ok"


def test_missing_permissions_are_named(
    hurt_rabbitmq: RabbitMQServer, hurt_broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    name = hurt_broker.name
    poor = Poor(hurt_rabbitmq, "^$", "^$", "^$")
    findings = RabbitMQSink.check_url(f"{poor.url}?exchange={name}&queue={name}")
    assert [finding.level for finding in findings] == ["ok", "error", "error", "warning"]
    assert "this user may not declare it" in findings[1].text
    make_rabbitmq(hurt_broker.url, exchange=name, queue=name)
    findings = RabbitMQSink.check_url(f"{poor.url}?exchange={name}")
    assert "set_permissions" in about(findings, "may not publish").remedy
    writer = Poor(hurt_rabbitmq, "^$", f"^{name}$", "^$")
    findings = RabbitMQSink.check_url(f"{writer.url}?exchange={name}&queue={name}")
    assert [finding.level for finding in findings] == ["ok", "ok", "ok", "ok", "warning"]
    assert hurt_broker.count() == 0


def test_an_alarm_is_found(hurt_rabbitmq: RabbitMQServer, hurt_broker: Broker, make_rabbitmq: MakeTransport) -> None:
    make_rabbitmq(hurt_broker.url, exchange=hurt_broker.name, queue=hurt_broker.name)
    with memory_alarm(hurt_rabbitmq):
        findings = RabbitMQSink.check_url(f"{hurt_broker.url}?exchange={hurt_broker.name}&connect_timeout=1")
    assert [finding.level for finding in findings] == ["ok", "ok", "error"]
    assert "free memory" in about(findings, "low on memory").remedy
    assert hurt_broker.count() == 0


def test_a_broker_that_cannot_be_entered_is_an_error_with_a_remedy(hurt_rabbitmq: RabbitMQServer) -> None:
    url = hurt_rabbitmq.url
    for wrong, remedy in (
        (url.replace("streamll_test", "hunter2"), "user and password"),
        (url.replace("%2F", "nowhere"), "add_vhost"),
        (f"amqp://localhost:{free_port()}", "the broker runs"),
        (f"{url.replace('amqp', 'amqps', 1)}?cacertfile=/nowhere.pem", "files"),
        (url.replace("amqp", "amqps", 1), "TLS"),
    ):
        findings = RabbitMQSink.check_url(wrong)
        assert [finding.level for finding in findings] == ["error"]
        assert remedy in findings[0].remedy
        assert "hunter2" not in repr(findings)


def test_a_bad_url_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="exchnge"):
        RabbitMQSink.check_url("amqp://localhost?exchnge=x")
