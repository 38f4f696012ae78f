"""Sink: the part that all destinations share. Being written; this is the contract that transports build on.

A concrete sink is one file: a transport, its error map, and a short class:

    class RedisSink(Sink):
        own_options = RedisOptions            # an OptionSet with this sink's own options
        def __init__(self, url=..., stream_key=..., *, client=None, name="", event_filter=None, on_delivery=None,
                     **options): ...           # options: names of SinkOptions and of own_options
            own, common = self.split_options(options)
            super().__init__(destination="redis://localhost:6379/0 stream app-events",   # no credentials
                             transport=lambda producer: RedisTransport(..., producer, ...),
                             options=common, name=name, event_filter=event_filter, on_delivery=on_delivery)

        @classmethod
        def from_url(cls, url: str, **options) -> "RedisSink": ...

        @classmethod
        def check_url(cls, url: str) -> list[Finding]: ...
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that `streamll check` has to say of a sink's server.

    Attributes:
        level: "ok", "warning" (works, but a promise may not be kept) or "error" (does not work).
        text: What is the case.
        remedy: What to do about it; empty when there is nothing to do.
    """

    level: str
    text: str
    remedy: str = ""
