"""Journal: the segments of one producer, so that what was accepted outlives the process.

What belongs here: which segment is written, when there is another, when one may go, and when the disk takes what was
stored. What does not: the bytes (segment.py), one file (segment_file.py), reading back (journal_reader.py), whose
segments these are (lease.py), and what a dead process left behind (spool.py).

Threads: `append` and `settle` are called under the lock of the sink's buffer, from any thread, and an exception out of a
signal handler may end them between any two steps. `read`, `seek`, `release`, `prepare` and `sync` need no lock; the first
four are for one thread at a time, the sink's worker.

What a death can cost. The process alone (SIGKILL, a segfault, the OOM killer): nothing; what `append` has stored is the
kernel's. The machine (a power cut, a kernel panic), durability "process": anything that the kernel has not written by
itself yet, usually the last 30 seconds. Durability "disk": what was stored after the last sync began; one begins at most
`sync_interval` seconds after something is stored, unless a thread of the host keeps the interpreter's lock for longer, and
is over when the drive says so. So an event is at risk for sync_interval and the time of two syncs, if the drive tells the
truth and the disk is not failing (`trouble` says that it is).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import time_ns

from streamll.delivery.outcome import Entry
from streamll.errors import ConfigurationError
from streamll.options import MIB
from streamll.ranges import RangeSet
from streamll.runtime.journal_reader import JournalReader
from streamll.runtime.lease import require_support
from streamll.runtime.segment import (
    FRAME_BYTES,
    HEADER_BYTES,
    MOST_RANGES_A_FRAME,
    Header,
    encode_entry,
    pack_frame,
    pack_header,
    pack_settlement,
)
from streamll.runtime.segment_chain import NoRoomError, SegmentChain
from streamll.runtime.segment_file import SegmentFile
from streamll.runtime.syncer import Syncer

PROCESS, DISK = "process", "disk"

_MOST_PENDING = 10_000
_LONGEST_IDENTITY = 3500  # bytes; with what else stands in a header it fits
_ENTRY_ERRORS = (TypeError, ValueError, IndexError)  # of the encoder, and of a mapping that was closed meanwhile


@dataclass(frozen=True)
class Identity:
    """Whose journal it is, and where its events go; it stands in the header of each segment.

    Attributes:
        destination: As it is shown, without credentials. Orphans are found by it.
        url: One that a replay can use, without credentials; empty when there is none.
        producer: The producer's id.
        durability: "process" or "disk"; or "memory", when only what memory had no room for is stored.
    """

    destination: str
    url: str
    producer: str
    durability: str = PROCESS


@dataclass(frozen=True)
class JournalNumbers:
    """A journal at a glance.

    Attributes:
        bytes: On disk: all of its segments, and one that may be prepared.
        segments: How many there are.
        unsynced: Whether something is stored that the disk may not have yet.
        trouble: Why something could not be stored or synced, in one line; empty when all is well.
        failures: How often the disk refused something.
        refused: Entries that were not stored.
        damaged: Places in its segments that could not be read back.
    """

    bytes: int
    segments: int
    unsynced: bool
    trouble: str
    failures: int
    refused: int
    damaged: int


class Journal:
    """The segments of one producer. It touches no disk until something is to be stored.

    Args:
        spool_dir: The spool; made when missing.
        identity: Whose journal it is.
        segment_bytes: The bytes of a segment; the first ones are smaller. No longer entry can be stored.
        spool_bytes: What all that is in the spool may take, that of other processes included. Each process looks when
            it makes a segment, so several at once may exceed it by one segment each.
        sync_interval: Seconds from something stored to the beginning of its sync at most; for durability "disk".

    Raises:
        ConfigurationError: Where the system cannot, or when the identity does not fit into a header.
    """

    def __init__(
        self,
        spool_dir: Path,
        identity: Identity,
        segment_bytes: int = 8 * MIB,
        spool_bytes: int = 256 * MIB,
        sync_interval: float = 0.1,
    ) -> None:
        require_support()
        self.identity = identity
        self.spool_dir = Path(os.path.abspath(spool_dir))  # noqa: PTH100  # Path.resolve would follow the links of now
        self.refused = 0
        self._host = os.uname().nodename.encode("utf-8", "replace").decode()[:64]
        try:
            length = len(f"{identity.destination}{identity.url}{identity.producer}".encode())
        except UnicodeEncodeError:
            raise ConfigurationError("durability: the sink's destination is no text that can be kept on disk") from None
        if length > _LONGEST_IDENTITY:
            raise ConfigurationError(
                f"durability: the sink's destination is too long to be kept on disk: {length} bytes"
            )
        self._piece_bytes = max(segment_bytes, MIB)
        self._chain = SegmentChain(
            self.spool_dir, identity.destination, identity.producer, self._header, segment_bytes, spool_bytes
        )
        self._refusal = self._sync_trouble = ""
        self._sync_failures = 0
        # Settlements that are not stored yet: of what readers need not be told, and of what they have not been told.
        self._pending = {undeclared: RangeSet(limit=_MOST_PENDING) for undeclared in (True, False)}
        self._closed = False
        self._syncing = threading.RLock()  # a signal handler may close the journal in the middle of a sync
        self._syncer = Syncer(self.sync, sync_interval) if identity.durability == DISK else None
        self._reader = JournalReader()

    def _header(self, index: int, size: int, salt: int) -> bytes:
        who = self.identity
        return pack_header(
            Header(
                producer=who.producer,
                destination=who.destination,
                url=who.url,
                durability=who.durability,
                index=index,
                size=size,
                salt=salt,
                pid=os.getpid(),
                host=self._host,
                created=time_ns(),
            )
        )

    @property
    def trouble(self) -> str:
        """Why something could not be stored or synced, in one line; empty when all is well."""
        return self._chain.trouble or self._sync_trouble or self._refusal

    # Storing

    def append(self, entry: Entry) -> bool:
        """Store an entry.

        Returns:
            Whether it is stored. When it is not, `trouble` says why; a disk that failed is tried again a second later.
        """
        try:
            body = encode_entry(entry)
            segment = self._chain.active
            at = segment.end
            end = at + FRAME_BYTES + len(body)
            # Something at `at` was left there by a call that an exception ended before its last step.
            if end > segment.limit or segment.map[at]:
                segment = self._chain.room_for(FRAME_BYTES + len(body))
                at = segment.end
                end = at + FRAME_BYTES + len(body)
            segment.last = entry.seq
            segment.last_at = at
            segment.map[at:end] = pack_frame(body, segment.salt)
            segment.end = end
        except NoRoomError as error:
            return self._refuse(str(error))
        except _ENTRY_ERRORS as error:
            return self._refuse(f"it cannot be encoded: {error}")
        if not segment.dirty:
            self._soil(segment)
        return True

    def take_back(self, accepted: int) -> None:
        """Remove the entry stored last, if its number was not given out: the call that stored it was interrupted.

        Args:
            accepted: The last number that was given out.
        """
        self._chain.active.unwrite(accepted)

    def _refuse(self, why: str) -> bool:
        self._refusal = "" if self._chain.trouble else why  # it is the entry's fault only when the disk is well
        self.refused += 1
        return False

    def _soil(self, segment: SegmentFile) -> None:
        segment.dirty = True
        if self._syncer is not None:
            self._syncer.due()

    def put_first(self, entries: Sequence[Entry]) -> bool:
        """Store entries, in order, whose numbers lie below all that is stored; returns whether all are, else none is.

        For the end of a process that has older events in memory and younger ones here. It takes its time.
        """
        pieces: list[list[bytes]] = []
        room = 0
        try:
            for entry in entries:
                body = encode_entry(entry)
                room -= FRAME_BYTES + len(body)
                if room < 0:
                    pieces.append([])
                    room = self._piece_bytes - HEADER_BYTES - FRAME_BYTES - len(body)
                pieces[-1].append(body)
            self._chain.put_first(pieces, sync=self._syncer is not None)
        except (NoRoomError, *_ENTRY_ERRORS) as error:
            self._refusal = str(error)
            return False
        return True

    def settle(self, ranges: Sequence[tuple[int, int]], undeclared: bool = False) -> None:
        """Record that the fate of these numbers is known: nobody shall deliver them again.

        What cannot be stored now is stored with the next. In a journal that holds nothing, nothing is recorded.

        Args:
            ranges: Inclusive (first, last) pairs.
            undeclared: Whether they were dropped, and no reader has been told yet; whoever adopts the journal tells them,
                unless a later settlement of the same numbers says that it was done.
        """
        if self._chain.segments:
            for first, last in ranges:
                self._pending[undeclared].add(first, last)
                self._pending[not undeclared].remove(first, last)
            self._store_pending()

    def _store_pending(self) -> None:
        try:
            for undeclared, pending in self._pending.items():
                while pending:
                    ranges = list(islice(pending, MOST_RANGES_A_FRAME))
                    size = len(pack_settlement(ranges, 0, undeclared))
                    segment = self._chain.room_for(size, settling=True)
                    frame = pack_settlement(ranges, segment.salt, undeclared)
                    end = segment.end + len(frame)
                    segment.map[segment.end : end] = frame
                    segment.end = end
                    self._soil(segment)
                    for first, last in ranges:
                        pending.remove(first, last)
        except (NoRoomError, *_ENTRY_ERRORS):  # later, then
            pass

    # Keeping house

    def prepare(self) -> None:
        """Make the next segment before it is needed, so that `append` need not; try again after trouble; notice when
        somebody has deleted the files; close those that are done with. For the worker, every now and then.
        """
        if self._syncer is None:
            self._chain.close_retired(dirty=True)
        self._refusal = ""
        self._chain.prepare()

    def is_about_to_release(self, floor: int) -> bool:
        """Whether `release` would delete anything."""
        return self._chain.is_about_to_release(floor)

    def release(self, floor: int) -> bool:
        """Delete the segments in which every number lies below `floor`: all of these are settled. The active one stays.

        Returns:
            Whether any was deleted.
        """
        return self._chain.release(floor)

    def sync(self) -> bool:
        """Have the disk take what was stored before this call; returns whether it did, else `trouble` says why."""
        chain = self._chain
        failed: OSError | None = None
        with self._syncing:
            try:
                folder = chain.folder
                if chain.is_new and folder is not None:
                    chain.is_new = False
                    try:
                        folder.sync()
                    except OSError:
                        chain.is_new = True
                        raise
            except OSError as error:
                failed = error
            for segment in tuple(chain.mapped):
                try:
                    if segment.dirty:
                        segment.sync()
                except OSError as error:
                    failed = error
            chain.close_retired(dirty=False)
            if failed is None:
                self._sync_trouble = ""
            elif not self._closed:
                self._sync_failures += 1
                self._sync_trouble = f"{chain.describe(failed)} (not synced)"
        return failed is None

    # Reading back

    def read(self, max_events: int, max_bytes: int, through: int | None = None) -> list[Entry]:
        """The next stored entries at or above the cursor, in order; the cursor moves behind them.

        Args:
            max_events: At most so many.
            max_bytes: At most so many bytes of payload, but always one entry.
            through: None with a higher number. Needed while the journal is written: what was stored last may belong to
                a call that was interrupted, and its number be given to another event.

        Returns:
            The entries; none when there are none now.

        Raises:
            OSError: They are there and cannot be read now; nothing is lost by it.
        """
        chain = self._chain
        if chain.folder is None:
            return []
        return self._reader.read(chain.folder, chain.segments, max_events, max_bytes, through)

    def seek(self, seq: int) -> None:
        """Go on reading at a number, or at the next one above it that is stored."""
        self._reader.seek(seq)

    # Seeing and ending

    @property
    def fill(self) -> float:
        """How much of spool_bytes is in use, from 0 to 1: by all processes when it was looked at last (each time a
        segment was made, or `prepare` was called), and by what was stored in the segment that is written.
        """
        return self._chain.fill

    @property
    def damaged(self) -> int:
        """Places in its segments that could not be read back."""
        return self._reader.damage.places

    def numbers(self) -> JournalNumbers:
        """Return what there is to be said about it."""
        chain = self._chain
        return JournalNumbers(
            bytes=chain.bytes,
            segments=len(chain.segments),
            unsynced=any(segment.dirty or segment.is_syncing for segment in tuple(chain.segments)),
            trouble=self.trouble,
            failures=chain.failures + self._sync_failures,
            refused=self.refused,
            damaged=self.damaged,
        )

    def close(self, *, keep: bool) -> None:
        """Give the journal up, and its lease: nothing is stored after it. Never raises.

        Args:
            keep: True leaves what is stored for whoever adopts it (synced, for durability "disk"). False deletes it all,
                and the producer's folder: the fate of everything is known.
        """
        if self._closed:
            return
        if keep:
            self._chain.ask_again()
            self._store_pending()
        self._closed = True
        if self._syncer is not None:
            self._syncer.stop(sync=keep)
        self._chain.close(delete=not keep)

    def forget_in_child(self) -> None:
        """In a forked child: let go of everything, and touch nothing on disk; the parent goes on with it.

        Closing the copies neither ends the parent's lease nor keeps it alive when the parent dies.
        """
        self._closed = True
        self._syncer = None
        self._syncing = threading.RLock()
        self._chain.forget_in_child()
