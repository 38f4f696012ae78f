"""What pipelining is worth on Redis: XADD one by one against redis-py's pipeline and against the sink, by round trip."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from streamll.sinks.redis_options import RedisOptions
from tests.fixtures.redis import RedisServer
from tests.performance.curve import BATCHES, ONE_BY_ONE, ROUND_TRIPS, Curve, Path, Way
from tests.performance.delay import DelayingProxy
from tests.performance.measuring import Race
from tests.performance.results import Aim, Findings
from tests.performance.sending import record, through_sink, with_query
from tests.performance.sending_redis import STREAM, Appender

REDIS_PY = "redis-py's pipeline"
SINK = "streamll's Redis sink"
DEFAULTS = "streamll's Redis sink with its defaults"
FRAMES = "streamll's Redis sink, framing=batch"


def test_pipeline_curve_on_redis(redis_here: RedisServer, race: Race, findings: Findings, quick: bool) -> None:
    findings.about("pipeline", "Redis: one XADD after the other, or many in a round trip")
    payload = record().payload
    with ExitStack() as stack:
        proxy = stack.enter_context(DelayingProxy(redis_here.port))
        inspector = stack.enter_context(redis_here.client())
        curve = Curve(
            race,
            proxy,
            empty=partial(inspector.delete, STREAM),
            count=partial(inspector.xlen, STREAM),
            seconds=0.03 if quick else 0.12,
            alone=60e-6,
            together=8e-6,
        )
        far = f"redis://{proxy.host}:{proxy.ports[0]}/0"
        near = [(Path("unix socket", 0, is_fitted=False), redis_here.unix_url), (Path("loopback", 0), redis_here.url)]
        distant = [(path, far) for path in curve.distant(ROUND_TRIPS[1::2] if quick else ROUND_TRIPS)]
        many = 5_000 if quick else 30_000
        for path, url in [*distant, *near]:
            appender = Appender(url, payload)
            stack.callback(appender.close)
            sink = partial(through_sink, with_query(url, stream=STREAM))
            curve.add(path, Way(ONE_BY_ONE), appender.one_by_one)
            for batch in BATCHES:
                curve.add(path, Way(REDIS_PY, batch), partial(appender.pipelined, batch=batch))
                # Without growth, so that a batch is what it is called.
                curve.add(path, Way(SINK, batch), partial(sink, batch_size=batch, batch_growth=1))
            if "framing" in RedisOptions.names():
                framing = partial(through_sink, with_query(url, stream=STREAM, framing="batch"))
                curve.add(path, Way(FRAMES), framing, n=many, framed=True)
            curve.add(path, Way(DEFAULTS), sink, n=many)
        curve.run(rounds=2 if quick else 5, warm_up=0 if quick else 1)

    findings.say(
        f"The same {len(payload)} bytes in an entry of three fields, one thread. redis-py's pipeline is given bytes that are "
        "encoded already; streamll is timed as it is used, from the first emit, with ids, redaction and encoding, until "
        "flush returns. The RTT is how much longer a PING takes through a delaying proxy than on loopback, measured "
        f"before each lap (on loopback: {proxy.loopback * 1e6:.0f} us). The unix socket has a cost of its own, and is left "
        "out of the fit; so are batches of one."
    )
    curve.tell(findings, [REDIS_PY, SINK])
    claimed = Aim(at_least=82)
    aims = [(0.0, Aim(at_least=15)), (ROUND_TRIPS[0], None), (ROUND_TRIPS[1], claimed)]
    curve.judge(findings, Way(DEFAULTS), aims, "batch_size 500, up to ten times that under load")
    if "framing" in RedisOptions.names():
        curve.judge(findings, Way(FRAMES), [(0.0, None)], "many events in an entry; trimming counts entries")
