"""How well redaction tells what is private from what is not: not worse than is right. What it costs is not asserted."""

from __future__ import annotations

import pytest

from streamll.privacy.kinds import TEXT_KINDS
from tests.corpus.generate import corpus
from tests.corpus.scorecard import BEGIN, END, PAGE, Scorecard, score

# What has a shape or a sum of its own is always found. The rest is known by what stands around it, or written in ways that
# nobody could tell from other things: the corpus has some of those too.
NOT_ALWAYS = {"email": 0.98, "phone": 0.97, "credential": 0.99}
NOT_ONLY = {"email": 0.98, "phone": 0.98, "card": 0.96}


@pytest.fixture(scope="module")
def card() -> Scorecard:
    return score(corpus())


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_what_is_there_is_found(card: Scorecard, kind: str) -> None:
    assert card.scores[kind].there >= 100
    assert card.scores[kind].recall >= NOT_ALWAYS.get(kind, 1.0), [text for other, text in card.missed if other == kind]


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_what_is_found_is_there(card: Scorecard, kind: str) -> None:
    assert card.scores[kind].precision >= NOT_ONLY.get(kind, 1.0), [
        text for other, text in card.mistaken if other == kind
    ]


def test_the_corpus_is_the_same_each_time() -> None:
    assert corpus() == corpus()


def test_the_page_has_every_kind() -> None:
    table = PAGE.read_text("utf-8").split(BEGIN)[1].split(END)[0]
    for kind in TEXT_KINDS:
        assert f"| {kind} |" in table
