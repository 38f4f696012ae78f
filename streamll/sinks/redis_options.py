"""The options that only the Redis sink has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streamll.options import OptionSet, option

SINGLE, BATCH = "single", "batch"


@dataclass(frozen=True)
class RedisOptions(OptionSet):
    """What a Redis sink can be told besides what every sink can."""

    owner: ClassVar[str] = "redis "

    stream: str = option("streamll", "The key of the stream that events are appended to.")
    max_stream_length: int = option(
        1_000_000,
        "Entries that the stream and its dead letters are each trimmed to (see framing); 0: never.",
        at_least=0,
        unit="entries",
    )
    trim: str = option(
        "approximate",
        "Whether the stream may be a few hundred entries longer than that, which costs the server far less, or not.",
        choices=("approximate", "exact"),
    )
    dead_letter_stream: str = option(
        "", "The key of the stream for rejected events; empty: the stream's with `:dead-letter`."
    )
    fence: str = option(
        "auto",
        "How a batch is kept from being stored twice: by a transaction guarded by WATCH, or by a script, which costs the "
        "server about two thirds more; auto: by a transaction where the server permits it, else by a script.",
        choices=("auto", "script", "transaction"),
    )
    framing: str = option(
        "single",
        "Whether each event is an entry of the stream, or up to 250 share one (batch), which costs the server a fifth or "
        "less. Streamll's readers unpack it; others must do so themselves. A group's member acknowledges all of an entry "
        "or nothing, and max_stream_length counts entries, whatever is in them.",
        choices=(SINGLE, BATCH),
    )
    create_group: str = option("", "A consumer group to create, which reads the stream from its start; empty: none.")
    wait_replicas: int = option(
        0,
        "Replicas that must have a batch (WAIT) before it counts as delivered, within send_timeout.",
        at_least=0,
        at_most=100,
    )
