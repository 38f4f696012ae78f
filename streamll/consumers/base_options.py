"""What every consumer can be told, and what it counts.

What belongs here: the two tables. What does not: what is done about them (base.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streamll.options import MIB, OptionSet, option

BEGINNING, END = "beginning", "end"


@dataclass(frozen=True)
class ConsumerOptions(OptionSet):
    """What every consumer can be told; each source adds its own."""

    owner: ClassVar[str] = "consumer "

    start: str | None = option(
        None,
        "Where to start: beginning, end (only what is new), or a position that an item had, to go on after it. When none "
        "is given: the beginning of what the source still has.",
    )
    follow: bool = option(True, "Wait for new entries; when false, end at what is there now.")
    timeout: float | None = option(None, "End when nothing new has come for so long.", at_least=0, unit="s")
    notes: bool = option(
        False,
        "Hand over the sinks' own notes too (events that they dropped, a clean end), which are left out otherwise.",
    )
    decode: bool = option(
        True, "Decode events. When false, only notes are decoded: `event` of all else is None, its `error` empty."
    )
    dedup_window: int = option(
        100_000,
        "Gaps and lone numbers remembered to drop doubles by; 0: doubles are handed over.",
        at_least=0,
        at_most=10_000_000,
    )
    max_event_bytes: int = option(16 * MIB, "A longer entry is undecodable.", at_least=1, unit="bytes")
    page_size: int = option(500, "Entries read at once, at most.", at_least=1, at_most=65_535)
    retry_base: float = option(
        0.1, "The wait before attempt n to reconnect is drawn from 0 to retry_base * 2^(n-1).", at_least=0, unit="s"
    )
    retry_bound: float = option(5.0, "The longest such wait.", at_least=0, unit="s")
    give_up_after: float | None = option(
        None,
        "How long to try to reconnect before it is an error. The first connection is tried once.",
        at_least=0,
        unit="s",
    )
    connect_timeout: float = option(5.0, "For opening a connection.", above=0, unit="s")
    read_timeout: float = option(
        5.0, "For an answer of the server, beyond what it was asked to wait.", above=0, unit="s"
    )


@dataclass(frozen=True)
class ConsumerStats:
    """What a consumer has counted.

    Attributes:
        received: Items handed over.
        undecodable: Those of them that were no events.
        redelivered: Those of them that had been delivered before.
        duplicates: Entries left out because their producer and number had been seen.
        notes: Notes of sinks that came, handed over (with the option `notes`) or left out.
        bytes: Bytes of the payloads handed over.
        reconnects: How often a lost connection was made again, or a file began anew.
        cuts: How often entries may have gone before they could be read: trimmed behind the position, or published to an
            exchange while the connection was lost.
        pending_lost: Entries of a consumer group that were trimmed from the stream before anybody acknowledged them.
        position: That of the last item handed over or left out as a note.
        last_error: Why the connection was lost last.
    """

    received: int = 0
    undecodable: int = 0
    redelivered: int = 0
    duplicates: int = 0
    notes: int = 0
    bytes: int = 0
    reconnects: int = 0
    cuts: int = 0
    pending_lost: int = 0
    position: str = ""
    last_error: str = ""
