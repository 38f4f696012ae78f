"""Journal in processes that are killed and that fork: what `append` said is stored is there, and leases end with their owner."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from streamll.runtime.spool import adopt, orphans
from tests.runtime.journals import adopt_one, drain, run, start

pytestmark = pytest.mark.concurrent


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def kill(process: subprocess.Popen[str]) -> list[str]:
    """Kill it, and return the words that it said and nobody has read."""
    process.kill()
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdin, process.stdout, process.stderr:
        assert not process.stderr.read()
        words = process.stdout.read().split()
    process.wait(30)
    return words


WRITES = """
journal = make(spool, durability=sys.argv[2], sync_interval=0.005)
say("begin")
seq, settled = 0, 0
while True:
    seq += 1
    assert journal.append(entry(seq, seq % 700)), journal.trouble
    say(seq)
    if seq % 50 == 0:
        journal.settle([(seq - 40, seq - 30)])
        say(f"s{seq}")
        journal.release(seq - 3000)
        journal.prepare()
"""


@pytest.mark.parametrize("durability", ["process", "disk"])
@pytest.mark.parametrize("seed", range(6))
def test_nothing_that_was_stored_is_lost_by_a_kill(spool: Path, durability: str, seed: int) -> None:
    process = start(WRITES, spool, durability)
    assert process.stdout is not None
    said = [process.stdout.readline().strip() for _ in range(random.Random(seed).randrange(1, 4000))]
    said += kill(process)
    appended = [int(word) for word in said if word.isdecimal()]
    settled = {n for word in said if word.startswith("s") for n in range(int(word[1:]) - 40, int(word[1:]) - 29)}
    adopted = adopt_one(spool) if appended else None
    if adopted is None:  # it was killed before the first
        return
    found = drain(adopted)
    assert adopted.damaged <= 1  # the frame that it was storing
    last = appended[-1]
    released = max(0, found[0] - 1)
    assert released <= max(0, last - 2000)
    assert set(found) >= set(range(released + 1, last + 1)) - set(range(1, last + 1)) & settled_by(last)
    assert not set(found) & settled
    assert set(found) <= set(range(1, last + 2))
    adopted.close(keep=False)
    assert list(orphans(spool)) == []


def settled_by(last: int) -> set[int]:
    """What it has settled, or was about to, when it stored that number."""
    return {n for seq in range(50, last + 51, 50) for n in range(seq - 40, seq - 29)}


class TestFork:
    def test_a_child_that_lives_on_does_not_keep_the_lease_of_a_dead_parent(self, spool: Path) -> None:
        script = """
journal = make(spool, durability="disk")
fill(journal, 1, 1000)
if os.fork() == 0:
    journal.forget_in_child()
    assert not journal.append(entry(1001))
    journal.settle([(1, 1000)])
    journal.prepare()
    journal.sync()
    journal.release(2000)
    assert journal.read(5, EVERYTHING) == []
    journal.close(keep=False)
    say(os.getpid())
    while True:
        signal.pause()
sys.stdin.readline()
fill(journal, 1001, 2000)
say("parent")
os.kill(os.getpid(), signal.SIGKILL)
"""
        process = start(script, spool)
        assert process.stdout is not None
        assert process.stdin is not None
        child = int(process.stdout.readline())
        assert [journal for folder in orphans(spool) if (journal := adopt(folder))] == []  # the parent's lease holds
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "parent\n"
        process.wait(30)
        os.kill(child, 0)  # it lives
        adopted = adopt_one(spool)
        assert drain(adopted) == list(range(1, 2001))
        adopted.close(keep=False)
        os.kill(child, signal.SIGKILL)
        assert process.stderr is not None
        with process.stdin, process.stdout, process.stderr:
            assert "Traceback" not in process.stderr.read()

    def test_children_that_nobody_told_have_no_lease_either(self, spool: Path) -> None:
        """Not even when another thread was about to take one at the fork."""
        script = """
def takes():
    n = 0
    while not done:
        n += 1
        journal = make(spool, f"p{n}")
        assert journal.append(entry(1)), journal.trouble
        journal.close(keep=False)
def locks():
    held = 0
    for name in os.listdir("/proc/self/fdinfo"):
        try:
            held += "FLOCK" in Path("/proc/self/fdinfo", name).read_text()
        except OSError:
            pass
    return held
done = False
threads = [threading.Thread(target=takes)]
for thread in threads: thread.start()
kept = 0
for _ in range(150):
    pid = os.fork()
    if pid == 0:
        # What the other thread was about to give back, it gives back for the child too.
        deadline = time.monotonic() + 20
        while (held := locks()) and time.monotonic() < deadline:
            time.sleep(0.001)
        os._exit(held)
    kept += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
done = True
for thread in threads: thread.join()
say("kept", kept)
"""
        if not Path("/proc/self/fdinfo").exists():
            pytest.skip("this system does not say which descriptors hold a lock")
        assert run(script, spool) == "kept 0\n"

    def test_threads_that_write_while_it_forks(self, spool: Path) -> None:
        script = """
lock = threading.Lock()
journals = [make(spool, f"p{n}", durability="disk") for n in range(2)]
stored = [0, 0]
def writes(n):
    journal = journals[n]
    while not done and stored[n] < 50_000:
        seq = stored[n] + 1
        with lock:
            assert journal.append(entry(seq, seq % 300)), journal.trouble
        stored[n] = seq
        if seq % 100 == 0:
            journal.prepare()
done = False
threads = [threading.Thread(target=writes, args=(n,)) for n in range(2)]
for thread in threads: thread.start()
codes = set()
for n in range(30):
    pid = os.fork()
    if pid == 0:
        for journal in journals: journal.forget_in_child()
        mine = make(spool, f"c{n}")
        fill(mine, 1, 50)
        mine.close(keep=True)
        os._exit(0)
    codes.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
done = True
for thread in threads: thread.join()
for journal in journals: journal.close(keep=True)
say(*stored, *codes)
"""
        *stored, code = map(int, run(script, spool).split())
        assert code == 0
        found = {}
        for folder in orphans(spool):
            adopted = adopt(folder)
            assert adopted is not None
            assert adopted.damaged == 0
            found[folder.name] = drain(adopted)
            adopted.close(keep=False)
        assert [found.pop("p0"), found.pop("p1")] == [list(range(1, last + 1)) for last in stored]
        assert list(found.values()) == [list(range(1, 51))] * 30


def test_a_signal_handler_may_append_in_the_middle_of_anything(spool: Path) -> None:
    """The buffer lets no second call in; but two journals of one process may meet in one thread."""
    script = """
outer, inner = make(spool, "outer"), make(spool, "inner")
count = 0
def handle(*_):
    global count
    count += 1
    assert inner.append(entry(count, 100)), inner.trouble
    if not done:
        signal.setitimer(signal.ITIMER_REAL, 0.0002)
done = False
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.0002)
for seq in range(1, 20001):
    assert outer.append(entry(seq, seq % 500)), outer.trouble
    if seq % 100 == 0:
        outer.prepare()
        outer.settle([(seq, seq)])
done = True
signal.setitimer(signal.ITIMER_REAL, 0)
outer.close(keep=True)
inner.close(keep=True)
say(count)
"""
    count = int(run(script, spool))
    found = {}
    for folder in orphans(spool):
        adopted = adopt(folder)
        assert adopted is not None
        assert (adopted.damaged, adopted.missing) == (0, [])
        found[folder.name] = drain(adopted)
        adopted.close(keep=False)
    assert found["inner"] == list(range(1, count + 1))
    assert found["outer"] == [n for n in range(1, 20001) if n % 100]
