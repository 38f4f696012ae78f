"""The numbers of a sink, as its users see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from streamll.delivery.circuit import CircuitChange, CircuitState
from streamll.delivery.ledger import Balance
from streamll.delivery.lifecycle import Phase
from streamll.runtime.latency import Latencies

if TYPE_CHECKING:
    from streamll.runtime.adoption import Adoption


@dataclass(frozen=True)
class SinkStats(Balance):
    """A sink's numbers: the balance (see `Balance`) and what else is known.

    Attributes:
        name: The sink's name.
        destination: Where its events go, without credentials.
        producer: The id under which a reader finds its events.
        phase: "new", "running", "draining" or "stopped".
        bytes_held: Bytes of what is buffered and in flight, as counted against buffer_bytes.
        declared: Dropped events that readers have been told of by a gap record.
        unprotected: Accepted events that were to be on disk and were in memory only, because the disk did not take them.
        spool_bytes: Bytes of the files on disk of this sink.
        spool_trouble: What is wrong with the spool; empty when nothing is.
        set_aside: Files in the spool that this process could not read and put aside, or left alone, by kind: empty,
            foreign, damaged, unreadable, newer.
        adopted: What became of the events that dead processes had left in the spool, each in a ledger of its own.
        batches: Batches sent, attempts that failed included.
        failed_batches: Those of them, and those for which no connection could be had, that were not delivered whole.
        retries: Times that a batch, or what was left of one, had to be sent again.
        circuit: "closed", "open" or "half_open".
        circuit_history: The last changes of it, oldest first, in seconds since the epoch.
        latency: From emit to confirmed delivery, in seconds.
        lost_after_ack: Events, at most, that the server has lost after it had acknowledged them.
        callback_errors: Times that an on_delivery callback or an event filter raised.
        defects: Errors inside the sink itself; report them.
        last_error: The last thing that went wrong, without credentials; empty when nothing has.
    """

    name: str = ""
    destination: str = ""
    producer: str = ""
    phase: str = Phase.NEW.value
    bytes_held: int = 0
    declared: int = 0
    unprotected: int = 0
    spool_bytes: int = 0
    spool_trouble: str = ""
    set_aside: Mapping[str, int] = field(default_factory=dict)
    adopted: tuple[Adoption, ...] = ()
    batches: int = 0
    failed_batches: int = 0
    retries: int = 0
    circuit: str = CircuitState.CLOSED.value
    circuit_history: tuple[CircuitChange, ...] = ()
    latency: Latencies = field(default_factory=Latencies)
    lost_after_ack: int = 0
    callback_errors: int = 0
    defects: int = 0
    last_error: str = ""

    def __str__(self) -> str:
        waiting = self.buffered + self.in_flight + self.spooled
        counts = {"delivered": self.delivered, "waiting": waiting, "dead-lettered": self.dead_lettered}
        counts |= {f"dropped ({reason})": n for reason, n in self.dropped.items()}
        counts |= {f"refused ({reason})": n for reason, n in self.refused.items()}
        counts["lost after acknowledgement"] = self.lost_after_ack
        counts["in memory only"] = self.unprotected
        counts["of dead processes delivered"] = sum(adoption.delivered for adoption in self.adopted)
        said = [f"{n} {what}" for what, n in counts.items() if n or what == "delivered"]
        said.append(f"circuit {self.circuit}")
        if self.spool_trouble:
            said.append(f"spool: {self.spool_trouble}")
        if self.last_error:
            said.append(f"last error: {self.last_error}")
        balance = "" if self.balanced else " (DOES NOT BALANCE)"
        return f"{self.name} to {self.destination}: {', '.join(said)}{balance}"


def by_the_clock(history: Iterable[CircuitChange], since: float) -> tuple[CircuitChange, ...]:
    """Return changes of the circuit, noted in monotonic seconds, as a person reads time."""
    return tuple(replace(change, at=change.at + since) for change in history)
