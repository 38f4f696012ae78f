"""What the readings say, against what a process is known to do; and what they say where there is nothing to read."""

from __future__ import annotations

import ctypes
import gc
import mmap
import resource
import sys
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.monitors.memory import readings as memory_readings
from streamll.monitors.memory.readings import (
    DEAR_SHARE,
    NOTHING,
    RELENT,
    TOO_LONG,
    Paced,
    Reader,
    allocated_blocks,
    collections,
    from_rusage,
    from_status,
    proportional,
)

MIB = 1024 * 1024
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no /proc")


def known(size: int | None) -> int:
    """A size that this platform tells."""
    assert size is not None
    return size


def has_mallinfo2() -> bool:
    try:
        return hasattr(ctypes.CDLL("libc.so.6"), "mallinfo2")
    except OSError:
        return False


class TestSystem:
    @linux
    def test_says_what_the_kernel_says(self) -> None:
        reading = Reader().read(monotonic())
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        assert reading.rss == pytest.approx(pages * resource.getpagesize(), rel=0.05, abs=2 * MIB)
        assert reading.peak == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, abs=2 * MIB)
        assert known(reading.footprint) <= known(reading.rss) + (reading.swap or 0)

    @linux
    @pytest.mark.parametrize("flags", [mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS])
    def test_counts_memory_of_either_kind_in_the_footprint(self, flags: int) -> None:
        reader = Reader()
        before = known(reader.read(monotonic()).footprint)
        with mmap.mmap(-1, 16 * MIB, flags) as block:
            for at in range(0, len(block), 4096):
                block[at] = 1
            during = known(reader.read(monotonic()).footprint)
        after = known(reader.read(monotonic()).footprint)
        assert during - before == pytest.approx(16 * MIB, abs=2 * MIB)
        assert after - before < 2 * MIB

    @linux
    def test_leaves_mapped_files_out_of_the_footprint(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"x" * 16 * MIB)
        reader = Reader()
        before = reader.read(monotonic())
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert sum(mapped[at] for at in range(0, len(mapped), 4096)) > 0
            during = reader.read(monotonic())
        if known(during.rss) - known(before.rss) < 8 * MIB:
            pytest.skip("files in this folder are memory of another kind")
        assert known(during.footprint) - known(before.footprint) < 2 * MIB

    @linux
    def test_knows_shares_of_memory_on_request(self) -> None:
        found = proportional()
        assert 0 < found["pss"] <= found["rss"]

    def test_old_kernels_say_less(self) -> None:
        assert from_status(b"Name:\tx\nVmHWM:\t 2 kB\nVmRSS:\t 1 kB\n") == (1024, 1024, 2048, None)
        assert from_status(b"Name:\tx\nVmRSS:\t  40 kB\nRssAnon:\t 8 kB\nRssShmem:\t 1 kB\nVmSwap:\t 2 kB\n") == (
            *(40 * 1024, 11 * 1024),
            *(None, 2048),
        )

    @given(st.binary())
    def test_whatever_stands_there_is_not_guessed_from(self, text: bytes) -> None:
        assert from_status(text) == NOTHING
        from_status(b"\nVmRSS:" + text)

    def test_where_there_is_no_proc_the_peak_is_known_at_least(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory_readings, "_contents", lambda path: b"")
        monkeypatch.setattr(memory_readings, "system_source", memory_readings.system_source.__wrapped__)
        monkeypatch.setitem(sys.modules, "psutil", None)
        reading = Reader().read(monotonic())
        assert (reading.rss, reading.footprint, reading.swap) == (None, None, None)
        assert reading.peak == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )
        assert proportional() == {}
        monkeypatch.setitem(sys.modules, "resource", None)
        assert Reader().read(monotonic()).peak is None

    @linux
    def test_psutil_says_the_same(self) -> None:
        pytest.importorskip("psutil")
        rss, _, peak, _ = memory_readings._elsewhere()()
        reading = Reader().read(monotonic())
        assert known(rss) == pytest.approx(known(reading.rss), abs=2 * MIB)
        assert peak == pytest.approx(known(reading.peak), abs=2 * MIB)

    def test_macos_says_it_in_a_structure(self) -> None:
        info = bytes(16) + b"".join(n.to_bytes(8, sys.byteorder) for n in (1, 2, 3, 4, 5, 6, 70, 80, 9, 10))
        assert from_rusage(info + bytes(500)) == (70, 80)

    @pytest.mark.skipif(sys.platform == "darwin", reason="this is macOS")
    def test_elsewhere_macos_is_not_asked(self) -> None:
        assert memory_readings._macos() is None

    def test_a_file_that_is_not_there_is_empty(self) -> None:
        assert memory_readings._contents("/nowhere/at/all") == b""


class TestHeap:
    @pytest.mark.skipif(not has_mallinfo2(), reason="glibc before 2.33, or another C library")
    def test_counts_what_malloc_gives_and_keeps(self) -> None:
        library = ctypes.CDLL(None)
        library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        library.free.argtypes = [ctypes.c_void_p]
        before = Reader().read(monotonic())
        blocks = [library.malloc(2000) for _ in range(5000)]
        during = Reader().read(monotonic())
        for block in blocks[::2]:
            library.free(block)
        after = Reader().read(monotonic())
        for block in blocks[1::2]:
            library.free(block)
        assert known(during.in_use) - known(before.in_use) == pytest.approx(10e6, rel=0.2)
        assert known(during.in_use) - known(after.in_use) == pytest.approx(5e6, rel=0.2)
        assert known(after.retained) - known(during.retained) == pytest.approx(5e6, rel=0.3)

    def test_is_not_known_where_the_library_is_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        assert memory_readings.heap_source()() is None
        monkeypatch.undo()
        monkeypatch.setitem(sys.modules, "ctypes", None)
        assert memory_readings.heap_source()() is None

    def test_is_not_known_where_another_allocator_stands_before_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As with jemalloc preloaded: the process's `malloc` is not the C library's."""

        def load(name: str | None) -> object:
            return type("Library", (), {"malloc": ctypes.c_void_p(1 if name else 2), "free": 0, "mallinfo2": None})

        monkeypatch.setattr(ctypes, "CDLL", load)
        assert memory_readings.heap_source()() is None


class TestBlocks:
    def test_are_counted(self) -> None:
        gc.collect()
        before = known(allocated_blocks())
        kept = [object() for _ in range(10_000)]
        during = known(allocated_blocks())
        assert 10_000 <= during - before < 10_500
        assert len(kept) == 10_000

    def test_are_not_known_where_python_does_not_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "getallocatedblocks", lambda: 0)
        assert allocated_blocks() is None
        monkeypatch.delattr(sys, "getallocatedblocks")
        assert allocated_blocks() is None

    def test_collections_are_told_by_generation(self) -> None:
        before = collections()
        gc.collect()
        after = collections()
        assert after[-1]["collections"] == before[-1]["collections"] + 1
        assert set(after[0]) == {"collections", "collected", "uncollectable", "waiting"}


class TestPaced:
    def test_is_asked_the_more_rarely_the_more_it_takes(self) -> None:
        now, spent, price = 0.0, 0.0, 0.0

        def ask() -> int:
            nonlocal spent
            spent += price
            return 7

        paced = Paced(ask, lambda: spent)
        assert [paced.read(now), paced.read(now)] == [7, 7]
        price = TOO_LONG / 2
        assert paced.read(now) == 7
        now += price / DEAR_SHARE - 0.01
        assert paced.read(now) is None
        now += 0.02
        price = TOO_LONG * 2
        assert paced.read(now) == 7
        now += RELENT - 1
        assert paced.read(now) is None
        now += 2
        assert paced.read(now) == 7
        assert paced.refused == 2
        assert paced.longest == pytest.approx(TOO_LONG * 2)
