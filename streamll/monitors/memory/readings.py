"""What the operating system, the C library's allocator and the interpreter say about this process's memory.

What belongs here: asking, each source fenced off with a fallback, and how often the dear ones may be asked. What does
not: what is concluded from the answers (leak_verdict.py). What cannot be known on a platform is None, never a guess:

    source                         where                           about, on the machine it was written on
    /proc/self/status              Linux                           15 us, whatever the process's size
    proc_pid_rusage                macOS
    psutil, if installed           elsewhere
    getrusage (the peak alone)     elsewhere                       1 us
    mallinfo2                      glibc 2.33 and later            0.3 us, and 0.2 us for each free chunk
    sys.getallocatedblocks         CPython                         0.6 us, and 20 us for each million blocks
    /proc/self/smaps_rollup        Linux, on request               0.2 ms, and 14 ms for each GiB

Those are in a loop. Twice a second, when all of it has left the processor's caches meanwhile, a reading takes 0.3 ms.

mallinfo2 holds each arena's lock while it walks that arena's free chunks, so whoever allocates waits meanwhile: 20 ms
where a heap is fragmented into 75,000 pieces. Thus what a source took decides when it is asked again (`Paced`).
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from math import inf
from struct import unpack_from
from time import monotonic, thread_time, time_ns
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")

DEAR_SHARE = 0.001
"""The share of the time by the clock that one dear source may take."""

TOO_LONG = 0.025
"""Seconds of one asking, for which the program may have had to wait."""

RELENT = 600.0
"""Seconds until a source that took longer is asked again."""

KIB = 1024


class Reading(NamedTuple):
    """What was to be known at one moment; sizes in bytes, None for what this platform does not say.

    Attributes:
        timestamp: When, in nanoseconds since the epoch.
        seconds: When, by `time.monotonic`.
        rss: In physical memory: what is the process's alone, and what it shares or has mapped from files.
        footprint: Of these, what no file stands behind (anonymous and shared memory), and what is swapped out: what the
            process costs its machine. Files that are mapped come and go with the page cache, and are no leak.
        peak: The most that `rss` has been.
        swap: Swapped out.
        in_use: Handed out by the C library's allocator. Python's objects up to 512 bytes are not in it: their arenas
            are mapped directly.
        retained: Free, and kept by that allocator; pages of it may be back with the system already.
        blocks: Blocks that Python's allocators have handed out.
    """

    timestamp: int
    seconds: float
    rss: int | None = None
    footprint: int | None = None
    peak: int | None = None
    swap: int | None = None
    in_use: int | None = None
    retained: int | None = None
    blocks: int | None = None


class Paced(Generic[T]):
    """A source that may be dear: asked as often as wanted while it is cheap, and the more rarely the more it takes.

    Attributes:
        refused: How often it was not asked for that.
        longest: Seconds of processor time that it took at most: by the clock, a busy machine would count too.
    """

    def __init__(self, ask: Callable[[], T | None], processor_clock: Callable[[], float] = thread_time) -> None:
        self._ask = ask
        self._processor_clock = processor_clock
        self._not_before = -inf
        self.refused = 0
        self.longest = 0.0

    def read(self, now: float) -> T | None:
        """Ask, if at this time by whatever clock it may be asked; None if not, or if there is no answer."""
        if now < self._not_before:
            self.refused += 1
            return None
        began = self._processor_clock()
        answer = self._ask()
        took = self._processor_clock() - began
        self.longest = max(self.longest, took)
        self._not_before = now + (RELENT if took > TOO_LONG else took / DEAR_SHARE)
        return answer


class Reader:
    """Takes readings, of dear sources as often as they allow. One thread at a time may use it."""

    def __init__(self) -> None:
        self._system = system_source()
        self.heap = Paced(heap_source())
        self.blocks = Paced(allocated_blocks)

    def read(self, now: float) -> Reading:
        """Take a reading of what is cheap at this moment; never raises.

        Args:
            now: Seconds, by `time.monotonic`.
        """
        rss, footprint, peak, swap = self._system()
        in_use, retained = self.heap.read(now) or (None, None)
        return Reading(time_ns(), now, rss, footprint, peak, swap, in_use, retained, self.blocks.read(now))


def read_now() -> Reading:
    """Take a reading on any thread, without the heap, whose locks the program may have to wait for; never raises."""
    rss, footprint, peak, swap = system_source()()
    return Reading(time_ns(), monotonic(), rss, footprint, peak, swap, blocks=allocated_blocks())


def allocated_blocks() -> int | None:
    """Blocks that Python's allocators have handed out; None where it does not count them (PYTHONMALLOC=malloc, PyPy)."""
    count = getattr(sys, "getallocatedblocks", None)
    return (count() or None) if count is not None else None


def collections() -> list[dict[str, int]]:
    """What the garbage collector has done, by generation: `collections`, `collected`, `uncollectable`, and `waiting`,
    its count of allocations (or of younger collections) since the last; empty where it has none (PyPy)."""
    if not hasattr(gc, "callbacks"):
        return []
    return [{**stats, "waiting": waiting} for stats, waiting in zip(gc.get_stats(), gc.get_count(), strict=False)]


# --- The operating system --------------------------------------------------------------------------------------------

System = tuple["int | None", "int | None", "int | None", "int | None"]
"""rss, footprint, peak, swap."""

NOTHING: System = (None, None, None, None)


@cache
def system_source() -> Callable[[], System]:
    """Return what asks the operating system of this machine."""
    if _status() != NOTHING:
        return _status
    return (_macos() if sys.platform == "darwin" else None) or _elsewhere()


def _status() -> System:
    return from_status(_contents("/proc/self/status"))


def _contents(path: str) -> bytes:
    """A file of /proc; empty when it cannot be had.

    It is opened each time: 4 us more than reading it through a descriptor that is kept, which a fork would make another
    process's and a program that closes "all" descriptors somebody else's.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return b""
    try:
        return os.read(descriptor, 16 * KIB)
    except OSError:
        return b""
    finally:
        with suppress(OSError):
            os.close(descriptor)


def from_status(text: bytes) -> System:
    """Read /proc/<pid>/status: https://man7.org/linux/man-pages/man5/proc_pid_status.5.html"""
    rss = _field(text, b"\nVmRSS:")
    if rss is None:
        return NOTHING
    anonymous, swap = _field(text, b"\nRssAnon:"), _field(text, b"\nVmSwap:")
    if anonymous is None:  # before Linux 4.5
        anonymous = rss
    shared = _field(text, b"\nRssShmem:") or 0
    return rss, anonymous + shared + (swap or 0), _field(text, b"\nVmHWM:"), swap


def _field(text: bytes, name: bytes) -> int | None:
    """A field of /proc that is given in kB, in bytes; None when it is not there."""
    at = text.find(name)
    if at < 0:
        return None
    words = text[at + len(name) : at + len(name) + 40].split(None, 1)
    return int(words[0]) * KIB if words and words[0].isdigit() else None


RUSAGE_BYTES = 1024
"""More than any version of `struct rusage_info` has."""


def from_rusage(info: bytes) -> tuple[int, int]:
    """Read `struct rusage_info_v0` of <sys/resource.h>, which later versions begin with: 16 bytes of a UUID, and numbers
    of 64 bits, the seventh and the eighth of which are the resident size and the footprint."""
    resident, footprint = unpack_from("=QQ", info, 16 + 6 * 8)
    return resident, footprint


def _macos() -> Callable[[], System] | None:
    """What macOS says, if what it says can be: no more in memory than the most that ever was."""
    try:
        import ctypes

        function = ctypes.CDLL("/usr/lib/libproc.dylib").proc_pid_rusage
    except (ImportError, OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    function.restype = ctypes.c_int

    def ask() -> System:
        info = ctypes.create_string_buffer(RUSAGE_BYTES)
        if function(os.getpid(), 0, info) != 0:
            return None, None, _peak(), None
        return *from_rusage(info.raw), _peak(), None

    resident, _, peak, _ = ask()
    return ask if resident and peak and resident <= 2 * peak else None


def _elsewhere() -> Callable[[], System]:
    """For all other machines: psutil if it is installed, and the peak."""
    try:
        from psutil import Process
    except ImportError:
        return lambda: (None, None, _peak(), None)
    process = Process()

    def ask() -> System:
        nonlocal process
        try:
            if process.pid != os.getpid():
                process = Process()
            memory = process.memory_info()
        except Exception:  # psutil's own errors: no permission, no such process
            return None, None, _peak(), None
        peak = getattr(memory, "peak_wset", None)
        return memory.rss, memory.rss, peak or _peak(), None

    return ask


def _peak() -> int | None:
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return None
    return int(getrusage(RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else KIB)


def proportional() -> dict[str, int]:
    """Return what /proc/self/smaps_rollup says, in bytes by its own names in lower case ("pss", "pss_anon",
    "private_dirty", ...); empty where there is none. It walks the page tables: on request only."""
    found = {}
    for line in _contents("/proc/self/smaps_rollup").splitlines()[1:]:
        name, _, rest = line.partition(b":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name.decode("ascii", "replace").lower()] = int(words[0]) * KIB
    return found


# --- The C library's allocator ---------------------------------------------------------------------------------------

HEAP_FIELDS = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)
"""Of `struct mallinfo2`, each a size_t: https://man7.org/linux/man-pages/man3/mallinfo.3.html"""

Heap = tuple[int, int]
"""Bytes in use, and bytes free but kept."""


def heap_source() -> Callable[[], Heap | None]:
    """Return what asks the allocator; what answers None always, where it is not glibc's, or one before 2.33."""
    ask = _mallinfo2() if sys.platform.startswith("linux") else None
    if ask is None:
        return lambda: None

    def read() -> Heap | None:
        info = ask()
        return info["uordblks"] + info["hblkhd"], info["fordblks"]

    return read


def _mallinfo2() -> Callable[[], Mapping[str, int]] | None:
    try:
        import ctypes

        process, library = ctypes.CDLL(None), ctypes.CDLL("libc.so.6")
        function: Any = library.mallinfo2
        # Another allocator may be loaded before (jemalloc, tcmalloc): then glibc's is there too, and knows of nothing.
        for name in ("malloc", "free"):
            addresses = {ctypes.cast(getattr(one, name), ctypes.c_void_p).value for one in (process, library)}
            if len(addresses) > 1:
                return None
    except (ImportError, OSError, AttributeError):  # no ctypes; musl; an older glibc
        return None
    fields = [(name, ctypes.c_size_t) for name in HEAP_FIELDS]
    kind = type("mallinfo2", (ctypes.Structure,), {"_fields_": fields})
    function.restype, function.argtypes = kind, []

    def ask() -> Mapping[str, int]:
        info = function()
        return {name: getattr(info, name) for name in HEAP_FIELDS}

    return ask
