"""`make soak`: steady load for some minutes with a fault every few seconds; each line says how things are."""

from __future__ import annotations

import argparse
import logging
import secrets
import signal
import sys

from tests.fixtures.process import ServerUnavailable
from tests.soak.brokers import WHERE
from tests.soak.run import Plan, Soak

MOST_MINUTES = 7 * 24 * 60
MOST_RATE = 20_000


def main() -> int:
    """Run one; returns 1 when something was wrong, 2 when a server is missing."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--on", default=",".join(WHERE), help="comma-separated (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help=f"at most {MOST_MINUTES} (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1000, help=f"events a second, at most {MOST_RATE} (%(default)s)")
    parser.add_argument("--seed", type=int, help="decides which faults come (default: by chance)")
    parser.add_argument("--growth", type=float, default=10, help="of the memory after the warm-up, in %% (%(default)s)")
    parser.add_argument("--options", default="", help="of the sinks, as in a URL: framing=batch&encoding=json")
    parser.add_argument("--line-every", type=float, default=5, help="seconds (default: %(default)s)")
    given = parser.parse_args()
    places = given.on.split(",")
    unknown = set(places) - WHERE.keys()
    if unknown or len(set(places)) < len(places):
        parser.error(f"--on {given.on}: must be of {', '.join(WHERE)}")
    if not (0 < given.minutes <= MOST_MINUTES and 1 <= given.rate <= MOST_RATE and given.line_every > 0):
        parser.error(f"minutes: up to {MOST_MINUTES}; rate: 1 to {MOST_RATE}; line-every: above 0")
    seed = given.seed if given.seed is not None else secrets.randbelow(10**9)
    plan = Plan(places, given.minutes * 60, given.rate, seed, given.growth / 100, given.options, given.line_every)
    print(f"{given.minutes:g} minutes, {plan.rate:g} events/s, seed {seed}, on {', '.join(places)}", flush=True)
    for logger in ("streamll", "pika"):  # they say what goes wrong, and here all does
        logging.getLogger(logger).setLevel(logging.CRITICAL + 1)
    soak = Soak(plan, lambda line: print(line, flush=True))

    def stop(_number: int, _frame: object) -> None:
        soak.stopped.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # once more ends it at once

    signal.signal(signal.SIGINT, stop)
    try:
        return 1 if soak.run() else 0
    except ServerUnavailable as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
