"""One program that is watched and not watched, in short blocks: what each block takes.

What belongs here: running the blocks. What does not: the program (workloads.py), how it is watched (watching.py), and the
order of the blocks and what they say (pairs.py, the tests).

Both blocks of a pair run in this one process: two processes differ by a percent or more in where their memory lies alone.
Beginning to watch and ending it is not in a block's time. Between it and the block the program runs, watched, for part of
PERIOD: else all that tools do at first, and each half second, would be in each block.

What was there before the first block, modules above all, is kept out of the garbage collector's sight: a full collection that
comes in one block and not in the other takes many times as long as what is to be measured.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from math import inf
from time import perf_counter

from tests.performance.child import Answer, Work, serve
from tests.performance.children.process import processor_seconds
from tests.performance.watching import begin
from tests.performance.workloads import PROGRAMS

PERIOD = 0.5
"""Seconds: as long as the longest time that a tool lets pass between two pieces of work that are worth measuring."""


class Watched:
    """Such a program.

    Args:
        program: Which of PROGRAMS.
        url: Where events go while it is watched.
    """

    def __init__(self, program: str, url: str) -> None:
        self._program = PROGRAMS[program][0]()
        self._url = url
        if self._program.beside is not None:
            self._program.beside()

    def calibrate(self, seconds: float) -> Answer:
        """Find how many pieces last about so long, and whether the program waits for most of the time."""
        self._program.run()  # in which much is done for the first time
        shortest = inf
        for _ in range(3):
            start = perf_counter()
            self._program.run()
            shortest = min(shortest, perf_counter() - start)
            if shortest >= seconds:
                break
        begin("everything", self._url)()  # which imports all that there is
        gc.collect()
        gc.freeze()
        return {"pieces": max(1, round(seconds / shortest)), "paced": self._program.is_paced}

    def run(self, turns: Sequence[tuple[str, bool, float]], pieces: int) -> Answer:
        """Run pairs of blocks.

        Args:
            turns: Of each pair: how the program is watched, whether the plain block is first, and how much of PERIOD the
                program has run, watched, before its block; the null arm's too, so that all else is the same.
            pieces: Of the program's work, in each block.

        Returns:
            Of each pair, for both blocks: seconds of processor time ("cpu") and by the wall, and the profiler's samples.
        """
        pairs = []
        for way, plain_first, phase in turns:
            first = self._block("null" if plain_first else way, pieces, 0.0 if plain_first else phase)
            second = self._block(way if plain_first else "null", pieces, phase if plain_first else 0.0)
            plain, watched = (first, second) if plain_first else (second, first)
            pairs.append({"way": way, "plain": plain, "watched": watched})
        return {"pairs": pairs}

    def _block(self, way: str, pieces: int, phase: float) -> Answer:
        run = self._program.run
        end = begin(way, self._url)
        try:
            until = perf_counter() + phase * PERIOD
            while perf_counter() < until:
                run()
            run()
            gc.collect()  # so that both blocks begin with the collector in the same state
            cpu, start = processor_seconds(), perf_counter()
            for _ in range(pieces):
                run()
            cpu, seconds = processor_seconds() - cpu, perf_counter() - start
        finally:
            samples = end()
        return {"cpu": cpu, "seconds": seconds, "samples": samples if isinstance(samples, int) else 0}


def make(program: str, url: str = "memory://") -> Mapping[str, Work]:
    watched = Watched(program, url)
    return {"calibrate": watched.calibrate, "run": watched.run}


if __name__ == "__main__":
    serve(make)
