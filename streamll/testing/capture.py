"""capture(): the events of a block, for a user's own tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from streamll.codec import decode
from streamll.hub import hub
from streamll.models import StreamllEvent
from streamll.options import BeforeSend, PipelineOptions
from streamll.pipeline import Pipeline


class Captured(list[StreamllEvent]):
    """The captured events, in order."""

    def of_type(self, event_type: str) -> list[StreamllEvent]:
        """Return those of one event type."""
        return [event for event in self if event.event_type == event_type]

    def of_operation(self, operation: str) -> list[StreamllEvent]:
        """Return those of one operation."""
        return [event for event in self if event.operation == operation]


@contextmanager
def capture(options: PipelineOptions | None = None, before_send: Sequence[BeforeSend] = ()) -> Iterator[Captured]:
    """Collect the events of a block as a reader would see them: redacted, encoded and decoded.

    While it lasts, events go nowhere else, also those of other threads; afterwards what was configured before holds
    again. Blocks may be nested: the innermost one collects.

    Args:
        options: The pipeline's options; default: the defaults.
        before_send: As for `configure`.

    Example:
        with streamll.testing.capture() as events:
            answer("why?")
        assert events.of_type("span")[0].operation == "answer"
    """
    pipeline = Pipeline(options, before_send)
    captured = Captured()

    def dispatch(event: StreamllEvent) -> bool:
        prepared = pipeline.prepare(event)
        if prepared is None:
            return False
        captured.append(decode(pipeline.encode(prepared).payload))
        return True

    with hub.instead(dispatch):
        yield captured
