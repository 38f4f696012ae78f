"""What pipelined confirms are worth on RabbitMQ: a confirm per message against a window of them, by round trip."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from streamll.sinks.rabbitmq_options import RabbitMQOptions
from tests.fixtures.rabbitmq import RabbitMQServer
from tests.fixtures.redis import RedisServer
from tests.performance.curve import BATCHES, ONE_BY_ONE, ROUND_TRIPS, Curve, Path, Way
from tests.performance.delay import DelayingProxy
from tests.performance.measuring import Race
from tests.performance.results import Findings
from tests.performance.sending import record, through_sink
from tests.performance.sending_rabbitmq import NAME, OneByOne, Queue, Windowed, url_to

PIKA = "pika's SelectConnection"
SINK = "streamll's RabbitMQ sink"
DEFAULTS = "streamll's RabbitMQ sink with its defaults"
FRAMES = "streamll's RabbitMQ sink, framing=batch"


def test_pipeline_curve_on_rabbitmq(
    rabbitmq_here: RabbitMQServer, redis_here: RedisServer, race: Race, findings: Findings, quick: bool
) -> None:
    findings.about("pipeline", "RabbitMQ: a confirm for each message, or a window of them")
    event = record()
    with ExitStack() as stack:
        # A PING of Redis through the same proxy tells how long the way is.
        proxy = stack.enter_context(DelayingProxy(redis_here.port, rabbitmq_here.port))
        queue = Queue(rabbitmq_here.port)
        stack.callback(queue.close)
        curve = Curve(
            race,
            proxy,
            empty=queue.purge,
            count=queue.__len__,
            seconds=0.03 if quick else 0.12,
            alone=1e-3,
            together=60e-6,
        )
        distant = [(path, proxy.ports[1]) for path in curve.distant(ROUND_TRIPS[1::2] if quick else ROUND_TRIPS)]
        many = 2_000 if quick else 8_000
        for path, port in [*distant, (Path("loopback", 0), rabbitmq_here.port)]:
            alone, windowed = OneByOne(port, event), Windowed(port, event)
            stack.callback(alone.close)
            stack.callback(windowed.close)
            curve.add(path, Way(ONE_BY_ONE), alone.send)
            there = {"exchange": NAME, "queue": NAME}
            for window in BATCHES[1:]:
                least = 2 if quick else 3
                curve.add(path, Way(PIKA, window), partial(windowed.send, window=window), at_least=least)
                sink = partial(through_sink, url_to(port, **there, confirm_window=window))
                curve.add(path, Way(SINK, window), sink, at_least=least)
            if "framing" in RabbitMQOptions.names():
                framing = partial(through_sink, url_to(port, **there, framing="batch"))
                curve.add(path, Way(FRAMES), framing, n=many, framed=True)
            curve.add(path, Way(DEFAULTS), partial(through_sink, url_to(port, **there)), n=many)
        curve.run(rounds=2 if quick else 4, warm_up=0 if quick else 1)

    findings.say(
        f"The same {len(event.payload)} bytes, persistent and mandatory, to a durable classic queue. One by one is pika's "
        "BlockingConnection, which waits for each confirm. A batch is here a window: so many messages are without a confirm "
        "at most. The RTT is how much longer a PING of Redis takes through the same delaying proxy than on loopback "
        f"({proxy.loopback * 1e6:.0f} us), measured before each lap."
    )
    curve.tell(findings, [PIKA, SINK], what="window")
    curve.judge(findings, Way(DEFAULTS), [(0.0, None)], "confirm_window 1,000")
    if "framing" in RabbitMQOptions.names():
        curve.judge(findings, Way(FRAMES), [(0.0, None)], "many events in a message")
