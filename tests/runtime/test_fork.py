"""What a fork must not cut in two."""

from __future__ import annotations

import os
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
