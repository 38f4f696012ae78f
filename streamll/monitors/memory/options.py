"""What a memory profiler can be told, and what it counts.

What belongs here: these tables. What does not: what it does (memory_profiler.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from streamll.options import OptionSet, option


@dataclass(frozen=True)
class MemoryProfilerOptions(OptionSet):
    """How often memory is read, what is kept, and what is worth an event."""

    owner = "memory profiler "

    interval: float = option(
        0.5,
        "Between two readings; ten times as long while monitoring costs too much.",
        at_least=0.001,
        at_most=3600,
        unit="s",
    )
    retain: int = option(1000, "Snapshots kept, the newest ones.", at_least=1, at_most=1_000_000, unit="snapshots")
    event_interval: float = option(
        10.0, 'Between two "memory" events; 0 makes none but the one at the end.', at_least=0, unit="s"
    )
    threshold_mb: float | None = option(
        None, 'More MiB than this in physical memory make a "memory_alert" event, once for each crossing.', above=0
    )
    growth_mb_per_min: float | None = option(
        None, 'Memory that grows faster, in MiB a minute over growth_window, makes a "memory_alert" event.', above=0
    )
    growth_window: float = option(60.0, "The time over which that is looked at.", above=0, unit="s")
    gc_pause: float | None = option(
        0.1, 'A pause of the garbage collector that is longer makes a "memory_alert" event.', above=0, unit="s"
    )
    warmup: float = option(5.0, "What happens in that time at first is not judged.", at_least=0, unit="s")
    leak_after: float = option(
        600.0,
        "Steady growth is called a leak with full confidence after so long. A program whose memory rises and falls in "
        "periods longer than that should be given more.",
        above=0,
        unit="s",
    )
    leak_growth_mb: float = option(4.0, "Growth by fewer MiB in all is no leak.", above=0)
    leak_confidence: float = option(
        0.8,
        'Growth of such confidence makes a "leak" event once it has lasted half of leak_after more.',
        at_least=0,
        at_most=1,
    )
    census: bool = option(
        True,
        "Count objects by type when memory begins to grow, and again when that is called a leak: what came between.",
    )
    max_stall: float = option(
        0.05, "No census where the program might have to wait for longer, unless it is asked for.", at_least=0, unit="s"
    )
    trace_allocations: float = option(
        0.0,
        "For so long tracemalloc is switched on when a leak is found, so that the event names the lines that allocate. "
        "Meanwhile the program is several times slower, and before CPython 3.12.9 and 3.13.2 switching it off can crash "
        "a process with native threads: 0, never.",
        at_least=0,
        at_most=60,
        unit="s",
    )


@dataclass(frozen=True)
class MemoryStats:
    """What a memory profiler has done, and left out.

    Attributes:
        readings: Of memory.
        heap_skipped, blocks_skipped: Readings without these, since they took too long before.
        looks: Times that the readings were judged.
        events: Made, by type.
        censuses, censuses_refused: Taken; and left out, as the program might have had to wait or the budget had no room.
        windows, windows_refused: Times that allocations were traced; and that they were not, as somebody else does or the
            budget had no room.
        blocks_measured, names_refused: Blocks of code measured; and those of names beyond the bound.
        collections_missed: Pauses of the garbage collector of which the length is not known.
    """

    readings: int = 0
    heap_skipped: int = 0
    blocks_skipped: int = 0
    looks: int = 0
    events: dict[str, int] | None = None
    censuses: int = 0
    censuses_refused: int = 0
    windows: int = 0
    windows_refused: int = 0
    blocks_measured: int = 0
    names_refused: int = 0
    collections_missed: int = 0
