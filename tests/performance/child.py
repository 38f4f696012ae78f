"""A process of its own that does laps when it is asked to, and answers in JSON: for what must not share a process.

Each of those that are compared has an interpreter, a heap and threads for itself, and libraries that change what all of a
process uses change nobody else's. They still run in turn: one works while the others wait.

What belongs here: both ends of that conversation. What does not: what the laps do (children/).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

ROOT = Path(__file__).resolve().parents[2]

Answer = dict[str, Any]
Work = Callable[..., Answer]


def environment() -> dict[str, str]:
    """The environment of a process that is measured: as users have it, with compiled files and without coverage."""
    unwanted = ("COVERAGE", "STREAMLL_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}


class Child:
    """Such a process, seen from the test; a context manager.

    Args:
        module: Whose work it does: one of those in children/, by its last name.
        settings: What it is to know before the first lap.
    """

    def __init__(self, module: str, **settings: Any) -> None:
        self._name = f"{module} {settings}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.performance.children.{module}", json.dumps(settings)],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, work: str, **arguments: Any) -> Answer:
        """Have it do something, and return its answer.

        Raises:
            RuntimeError: When it ended instead; its standard error says why.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"work": work, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the process {self._name} ended with {self._process.wait(30)} instead of an answer")
        answer: Answer = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()  # which is how it learns that this was all
            self._process.wait(30)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Children(ExitStack):
    """Several of them, ended together."""

    def start(self, module: str, **settings: Any) -> Child:
        """Start one more."""
        return self.enter_context(Child(module, **settings))


def serve(make: Callable[..., Mapping[str, Work]]) -> None:
    """Be such a process: do what standard input asks for until it ends.

    Args:
        make: From the settings to what can be asked for, by name.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is not an answer
    works = make(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(works[request.pop("work")](**request)) + "\n")
