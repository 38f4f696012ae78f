"""`make chaos`: seeded scenarios, on real servers unless told otherwise; each failing one says how to see it again."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import sys
import time
from collections.abc import Callable, Iterator

from tests.chaos import scripted
from tests.chaos.on_rabbitmq import RabbitMQScenario, start_rabbitmq
from tests.chaos.on_redis import RedisScenario, start_redis
from tests.chaos.real import run
from tests.chaos.watch import Watch, watching
from tests.fixtures.process import ServerUnavailable

Run = Callable[[int], str]
MOST = 100_000


@contextlib.contextmanager
def on_redis(watch: Watch) -> Iterator[Run]:
    """Scenarios on a Redis that is started for them."""
    with contextlib.closing(start_redis()) as server:
        yield lambda seed: run(RedisScenario, seed, server, watch)


@contextlib.contextmanager
def on_rabbitmq(watch: Watch) -> Iterator[Run]:
    """Scenarios on a RabbitMQ that is started for them."""
    with contextlib.closing(start_rabbitmq()) as server:
        yield lambda seed: run(RabbitMQScenario, seed, server, watch)


@contextlib.contextmanager
def on_scripted(watch: Watch) -> Iterator[Run]:
    """Scenarios that need no server."""
    yield lambda seed: scripted.run(seed, watch)


WHERE = {"redis": on_redis, "rabbitmq": on_rabbitmq, "scripted": on_scripted}
SHARE = {"redis": 4, "rabbitmq": 1, "scripted": 20}
"""How many scenarios on each, of the same number: those on RabbitMQ take longest."""


def main() -> int:
    """Run them; returns 1 when one failed, 2 when a server is missing."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--on", default="redis,rabbitmq", help=f"comma-separated, of {', '.join(WHERE)}")
    parser.add_argument("--scenarios", type=int, default=200, help=f"in all, at most {MOST} (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="run this one only")
    given = parser.parse_args()
    places = given.on.split(",")
    unknown = set(places) - WHERE.keys()
    if unknown or not 0 < given.scenarios <= MOST:
        parser.error(f"unknown: {', '.join(unknown)}" if unknown else f"scenarios: 1 to {MOST}")
    shares = {place: SHARE[place] for place in places}
    failed = done = 0
    for place in places:
        count = 1 if given.seed is not None else max(1, given.scenarios * shares[place] // sum(shares.values()))
        first = given.seed if given.seed is not None else secrets.randbelow(10**9)
        print(f"{place}: {count} scenarios, from seed {first}", flush=True)
        try:
            failures = _run(place, range(first, first + count))
        except ServerUnavailable as error:
            print(f"{place}: {error}", file=sys.stderr)
            return 2
        done += count
        failed += failures
    print(f"{done} scenarios, {failed} failed")
    return 1 if failed else 0


def _run(place: str, seeds: range) -> int:
    """Run scenarios in one place; returns how many failed."""
    failed = 0
    began = time.monotonic()
    with watching() as watch, WHERE[place](watch) as scenario:
        for done, seed in enumerate(seeds, 1):
            try:
                said = scenario(seed)
            except AssertionError as error:
                failed += 1
                said = f"FAILED\n{error}"
            if place != "scripted" or said.startswith("FAILED") or done % 500 == 0 or done == len(seeds):
                print(f"{place} {done}/{len(seeds)}, seed {seed}: {said}", flush=True)
    print(f"{place}: {len(seeds)} scenarios, {failed} failed, {time.monotonic() - began:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
