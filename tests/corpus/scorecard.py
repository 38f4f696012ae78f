"""How well redaction tells what is private from what is not, and what it costs an event.

What belongs here: counting over the corpus, timing, and the table. What does not: the corpus (generate.py).

Something is found when what is replaced covers all of it; half a number is none found. Something is found in error when it
touches nothing that is to be found, of whatever kind: an address that goes as part of a URL's password is no mistake.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import thread_time_ns

from streamll import codec
from streamll.models import NO_TAGS, Record
from streamll.options import PipelineOptions
from streamll.pipeline import Pipeline
from streamll.privacy import SensitiveKeys
from streamll.privacy.kinds import TEXT_KINDS, read_rules
from streamll.privacy.scanner import Scanner
from tests.corpus.generate import SEED, Sample, corpus

PAGE = Path(__file__).parent.parent.parent / "docs" / "privacy.md"
BEGIN, END = "<!-- scorecard: python -m tests.corpus --write -->", "<!-- end of the scorecard -->"
_BETWEEN = re.compile(f"(?<={re.escape(BEGIN)}\n).*(?={re.escape(END)})", re.DOTALL)


@dataclass
class Score:
    """The counts of one kind."""

    there: int = 0
    found: int = 0
    claimed: int = 0
    right: int = 0

    @property
    def recall(self) -> float:
        """The share of what is there that is found."""
        return self.found / self.there if self.there else 1.0

    @property
    def precision(self) -> float:
        """The share of what is said to be there that is."""
        return self.right / self.claimed if self.claimed else 1.0


@dataclass
class Scorecard:
    """The scores of all kinds; and the texts that went wrong, for who works on it."""

    scores: dict[str, Score] = field(default_factory=lambda: {kind: Score() for kind in TEXT_KINDS})
    missed: list[tuple[str, str]] = field(default_factory=list)
    mistaken: list[tuple[str, str]] = field(default_factory=list)


def score(samples: Iterable[Sample]) -> Scorecard:
    """Look through all samples with full redaction's own scanner."""
    card = Scorecard()
    scanner = Scanner(read_rules(""), SensitiveKeys())
    for text, expected in samples:
        spans = scanner.spans(text)
        for start, end, kind in expected:
            card.scores[kind].there += 1
            covered = any(first <= start and end <= last for first, last, _ in spans)
            card.scores[kind].found += covered
            if not covered:
                card.missed.append((kind, text))
        for first, last, kind in spans:
            card.scores[kind].claimed += 1
            right = any(start < last and first < end for start, end, _ in expected)
            card.scores[kind].right += right
            if not right:
                card.mistaken.append((kind, text))
    return card


EVENT = {
    "model": "gpt-4o-2024-05-13",
    "prompt": "Summarise the quarterly report in three sentences, please.",
    "tokens": 512,
    "latency_ms": 183.25,
    "cached": False,
    "request": "req_8f3a9c21d4",
    "url": "https://api.example.com/v1/chat/completions",
    "status": 200,
    "region": "eu-west-1",
    "started": "2026-01-31T09:30:00Z",
    "ip": "10.0.13.7",
    "attempt": 1,
}
"""An event's data of 12 attributes with nothing private in it."""

CASES: dict[str, tuple[str, dict[str, object]]] = {
    "keys, nothing found": ("keys", {}),
    "keys, a password": ("keys", {"region": None, "password": "hunter2"}),
    "full, nothing found": ("full", {}),
    "full, an e-mail address": ("full", {"region": "bob@example.com"}),
    "full, a user id": ("full", {"region": None, "user_id": "u-1"}),
    "full, an address, a phone number and a card": (
        "full",
        {"region": "bob@example.com", "ip": "+44 20 7123 4567", "request": "4111 1111 1111 1111"},
    ),
}
_ROUNDS, _CALLS = 15, 400
_FRAME = ("e" * 32, "a" * 32, "b" * 16, "", 1_700_000_000_000_000_000)


def costs() -> dict[str, float]:
    """Return what redaction adds to an event's way to its bytes, in microseconds of processor time.

    Each case and the one without redaction take turns; it is the median of the differences within a round.
    """
    off = _timed("off", {})
    timed = {name: _timed(mode, more) for name, (mode, more) in CASES.items()}
    differences: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(_ROUNDS):
        base = off()
        for name, run in timed.items():
            differences[name].append(run() - base)
    return {name: median(found) for name, found in differences.items()}


def _timed(redact: str, more: dict[str, object]) -> Callable[[], float]:
    pipeline = Pipeline(PipelineOptions(redact=redact, pseudonym_key="a key for the scorecard"))

    def put(_record: Record) -> bool:
        return True

    take = pipeline.straight(codec.MSGPACK, put)
    data = {key: value for key, value in {**EVENT, **more}.items() if value is not None}

    def run() -> float:
        begun = thread_time_ns()
        for _ in range(_CALLS):
            take("llm", *_FRAME, "app.llm", "complete", "generate", "info", data, NO_TAGS, "")
        return (thread_time_ns() - begun) / _CALLS / 1000

    run()
    return run


def as_markdown() -> str:
    """Return the scorecard as tables."""
    samples = corpus()
    card = score(samples)
    lines = [
        f"{len(samples):,} texts: those in tests/corpus/texts.txt, and what tests/corpus/generate.py makes of the seed {SEED}.",
        "",
        "| kind | in the corpus | found (recall) | claims that are right (precision) |",
        "| --- | ---: | ---: | ---: |",
    ]
    for kind, scored in card.scores.items():
        lines.append(f"| {kind} | {scored.there} | {_percent(scored.recall)} | {_percent(scored.precision)} |")
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    lines += [
        "",
        f"What redaction adds to the way of an event of {len(EVENT)} attributes, in microseconds of processor time ({python}):",
        "",
        "| redact, and what is in the event | µs an event |",
        "| --- | ---: |",
        *(f"| {name} | {cost:.1f} |" for name, cost in costs().items()),
    ]
    return "\n".join(lines) + "\n"


def _percent(share: float) -> str:
    return "100 %" if share == 1 else f"{int(share * 1000) / 10:.1f} %"


def mistakes(card: Scorecard) -> str:
    """Return what went wrong, a line for each."""
    kinds = Counter(kind for kind, _ in (*card.missed, *card.mistaken))
    lines = [f"missed    {kind}: {text!r}" for kind, text in card.missed]
    lines += [f"mistaken  {kind}: {text!r}" for kind, text in card.mistaken]
    return "\n".join([*lines, str(dict(kinds))])


def write(page: Path = PAGE) -> None:
    """Put the scorecard into the page of the docs."""
    text, count = _BETWEEN.subn(lambda _: f"\n{as_markdown()}\n", page.read_text("utf-8"))
    if count != 1:
        raise ValueError(f"{page.name} has no place for the scorecard")
    page.write_text(text, "utf-8")
