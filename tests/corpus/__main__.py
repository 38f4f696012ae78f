"""`python -m tests.corpus`: the scorecard, shown or written."""

from __future__ import annotations

import argparse

from tests.corpus.generate import corpus
from tests.corpus.scorecard import as_markdown, mistakes, score, write

parser = argparse.ArgumentParser(prog="python -m tests.corpus", description="How well redaction finds what is private.")
parser.add_argument("--write", action="store_true", help="write it into docs/privacy.md")
parser.add_argument("--mistakes", action="store_true", help="show each text that went wrong")
arguments = parser.parse_args()

if arguments.write:
    write()
elif arguments.mistakes:
    print(mistakes(score(corpus())))
else:
    print(as_markdown())
