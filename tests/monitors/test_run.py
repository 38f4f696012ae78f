"""`streamll run`: a program behaves as under `python`, and its run is summed up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from streamll.cli import main

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "STREAMLL"))}

WHO_AM_I = """
import sys
print(__name__, __file__, __package__, __spec__ and __spec__.name, type(__loader__).__name__, sys.argv, sys.path[0])
print(sys.modules["__main__"].__dict__ is globals(), sorted(set(globals()) - {"__annotations__"}))  # which only scripts have, and not in every version
"""

PROGRAMS = {
    "who am i": WHO_AM_I,
    "a status": "import sys; sys.exit(3)",
    "a wide status": "import sys; sys.exit(256 + 7)",
    "a message": "import sys; sys.exit('so long')",
    "nothing to say": "raise SystemExit",
    "an error": "def f(n):\n    if n: f(n - 1)\n    {}['k']\nf(3)",
    "an error of an error": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('x') from error",
    "no program": "def (:",
    "a hook of its own": "import sys\nsys.excepthook = lambda *args: print(args[0].__name__, args[2].tb_lineno)\n1 / 0",
    "interrupted": "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile True: pass",
    "terminated": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nwhile True: pass",
    "killed": "import os, signal\nprint('last', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)",
    "gone at once": "import os\nprint('last', flush=True)\nos._exit(4)",
    "handles it": (
        "import os, signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "os.kill(os.getpid(), signal.SIGTERM)\nwhile True: pass"
    ),
    "goes on after its main code": """
import atexit, threading, time
atexit.register(lambda: print("at exit", helper()))
def helper(): return __name__
def late():
    time.sleep(0.05)
    print("late", helper())
threading.Thread(target=late).start()
""",
    "pickles": "import pickle\nclass C: pass\nprint(type(pickle.loads(pickle.dumps(C()))) is C)",
    "spawns": """
import multiprocessing
def work(n): return n * n
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(work, [3]))
""",
}


@dataclass(frozen=True)
class Ending:
    status: int
    out: str
    err: str


def run(folder: Path, *words: str) -> Ending:
    command = [sys.executable, *words]
    done = subprocess.run(
        command, cwd=folder, env=ENVIRON, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    return Ending(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A script for each program; and the first of them as a module, a package, a folder and a zip file."""
    made = tmp_path_factory.mktemp("programs")
    for name, text in PROGRAMS.items():
        (made / f"{name.replace(' ', '_')}.py").write_text(text)
    for package in ("package", "place"):
        (made / package).mkdir()
        (made / package / "__main__.py").write_text(WHO_AM_I)
    (made / "package" / "__init__.py").touch()
    with zipfile.ZipFile(made / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", WHO_AM_I)
    (made / "broken").mkdir()
    (made / "broken" / "__init__.py").write_text("1 / 0")
    return made


WAYS = [
    *[[f"{name.replace(' ', '_')}.py", "--of", "its own"] for name in PROGRAMS],
    ["-m", "who_am_i", "-m", "x"],
    ["-m", "package"],
    ["place", "a"],
    ["archive.zip"],
]


def test_a_program_ends_says_and_is_what_it_would_be_without(folder: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        plain = [pool.submit(run, folder, *words) for words in WAYS]
        watched = [pool.submit(run, folder, "-m", "streamll", "run", "--quiet", *words) for words in WAYS]
    for words, one, other in zip(WAYS, plain, watched, strict=True):
        assert (words, other.result()) == (words, one.result())


def test_a_run_is_summed_up_for_people_and_for_programs(folder: Path) -> None:
    (folder / "job.py").write_text("""
import sys, streamll
@streamll.trace
def step(n):
    if n == 3: raise ValueError(n)
for n in range(5):
    try: step(n)
    except ValueError: pass
streamll.emit("note", operation="\\x1b[31mred")
print(streamll.stats().monitoring["monitoring"].target)
sys.exit(2)
""")
    words = ["--overhead-target", "0.04", "--sink", "file:///" + str(folder / "events.jsonl"), "-o", "out.json"]
    ended = run(folder, "-m", "streamll", "run", *words, "job.py")
    assert (ended.status, ended.out) == (2, "0.04\n")
    assert ended.err.startswith("streamll: job.py ended with 2 after ")
    assert "\x1b" not in ended.err
    sent = re.search(r"file: (\d+) of (\d+) events delivered to file:", ended.err)
    assert sent is not None
    assert sent[1] == sent[2]
    assert "watching took" in ended.err
    report = json.loads((folder / "out.json").read_text())
    rows = {row["operation"]: row for row in report["operations"]["operations"]}
    assert (rows["step"]["calls"], rows["step"]["errors"]) == (5, 1)
    assert report["status"] == 2
    assert report["balanced"]
    assert (
        report["sinks"]["file"]["delivered"]
        == int(sent[1])
        == len((folder / "events.jsonl").read_text().splitlines()) - 1
    )
    assert not list(folder.glob("*.part"))


def test_a_run_that_a_signal_ends_is_summed_up_all_the_same(folder: Path) -> None:
    ended = run(folder, "-m", "streamll", "run", "terminated.py")
    assert ended.status == -signal.SIGTERM
    assert ended.err.startswith("streamll: terminated.py was ended by a signal after ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to run"),
        (["missing.py"], "cannot open 'missing.py': No such file or directory"),
        (["-m", "missing.module"], "no module named missing.module"),
        (["-m", "package.missing"], "no module named package.missing"),
        (["-o", "nowhere/out.json", "a_status.py"], "there is no folder for 'nowhere/out.json'"),
        (["--overhead-target", "0", "a_status.py"], "overhead_target=0.0: must be above 0 and at most 1"),
        (["--sink", "nonsense://", "a_status.py"], "nonsense"),
    ],
)
def test_what_cannot_be_run_is_said(
    folder: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path[1:]])
    assert main(["run", *words]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""


def test_a_package_that_cannot_be_imported_shows_its_own_traceback_only(folder: Path) -> None:
    ended = run(folder, "-m", "streamll", "run", "-m", "broken")
    assert ended.status == 1
    assert "ZeroDivisionError" in ended.err
    assert "streamll" not in ended.err.replace("streamll: ", "")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_programs_started_by_way_of_a_function_in_their_process_are_let_live(folder: Path) -> None:
    (folder / "starts.py").write_text(
        "import subprocess, sys, time\n"
        "def busy(): return [n for n in range(100) for _ in range(100)]\n"
        "def before(until=0.3):\n    until += time.monotonic()\n    while time.monotonic() < until: busy()\n"
        "code = 'import time\\nwhile time.process_time() < 0.1: pass'\n"
        "print(subprocess.run([sys.executable, '-c', code], preexec_fn=before).returncode)\n"
    )
    ended = run(folder, "-m", "streamll", "run", "--quiet", "--profile", "--overhead-target", "0.9", "starts.py")
    assert (ended.status, ended.out) == (0, "0\n"), ended.err
