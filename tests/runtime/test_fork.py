"""What a fork must not cut in two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")


def test_a_fork_waits_until_an_import_is_whole() -> None:
    script = """
import os, threading
from streamll.runtime.fork import whole_import
entered, forking, imported = threading.Event(), threading.Event(), []
def work():
    with whole_import():
        entered.set()
        forking.wait(50)
        imported.append(True)
os.register_at_fork(before=forking.set)  # the last that is registered is the first that is called
threading.Thread(target=work, daemon=True).start()
entered.wait(50)
if os.fork() == 0:
    with whole_import():  # and the child is not locked out
        os._exit(0 if imported else 1)
_, status = os.wait()
with whole_import():  # nor the parent
    print(os.waitstatus_to_exitcode(status), *imported)
"""
    # Python 3.12 warns of forking a process that has threads: that is what this test is about.
    flags = ["-W", "ignore::DeprecationWarning"]
    done = subprocess.run([sys.executable, *flags, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0 True\n", "")


def test_a_child_closes_its_copies_and_nothing_else() -> None:
    script = """
import os, socket, sys
from streamll.runtime.fork import Descriptors
descriptors = Descriptors()
ours, theirs = socket.socketpair()
gone, _other = socket.socketpair()
descriptors.hold(ours.fileno())
descriptors.hold(gone.fileno())
number = gone.fileno()
reading, writing = os.pipe()
gone.close()
os.dup2(writing, number)  # somebody else's by now
pid = os.fork()
if pid == 0:
    os.write(number, b"still open")
    try:
        ours.send(b"x")
        os._exit(1)
    except OSError:
        pass
    sys.stdin.readline()
    os._exit(0)
ours.send(b"from the parent")
ours.close()
print(theirs.recv(100), theirs.recv(100), os.read(reading, 100), os.waitpid(pid, os.WNOHANG)[0])
sys.stdout.flush()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    flags = ["-W", "ignore::DeprecationWarning"]
    process = subprocess.Popen(
        [sys.executable, *flags, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        # The other end sees the end, while the child lives.
        assert process.stdout.readline() == "b'from the parent' b'' b'still open' 0\n"
        out, _ = process.communicate("\n", timeout=60)
    assert (process.returncode, out) == (0, "0\n")


def test_a_signal_that_comes_while_a_child_is_being_made_ends_it() -> None:
    script = """
import os, random, signal, time
import streamll
streamll.configure(sinks=["memory://"])
streamll.stop_on_signal()
streamll.emit("the parent's")
chance = random.Random(7)
for _ in range(30):
    pid = os.fork()
    if pid == 0:
        time.sleep(20)
        os._exit(3)
    until = time.perf_counter() + chance.random() * 0.003
    while time.perf_counter() < until:
        pass
    os.kill(pid, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    flags = ["-W", "ignore::DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, *flags, "-c", script], capture_output=True, text=True, timeout=50, env=environ
    )
    assert (done.stdout, done.stderr) == (f"{-signal.SIGTERM}\n" * 30 + "set()\n", "")
