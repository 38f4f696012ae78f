"""What all consumers decide: doubles, what comes again, acknowledging, reconnecting, both ways of iterating.

The sources here follow a script. What real servers do is in tests/integration/test_consumers_*.py.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Hashable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll import codec
from streamll.consumers import Consumer, ConsumerOptions, FileConsumer, Received, consumer_for
from streamll.consumers import file as file_consumer
from streamll.consumers import rabbitmq as rabbitmq_consumer
from streamll.consumers import redis as redis_consumer
from streamll.consumers.received import LONGEST_NOTE, Coming, Sheaf, Ticket, read_event, read_note
from streamll.consumers.seen import SeenNumbers
from streamll.errors import ConfigurationError, ConsumerError, FatalError, TransportError, UnavailableError
from streamll.models import CLOSING, GAP, StreamllEvent
from streamll.options import OptionSet, SinkOptions
from streamll.sinks.file import FileOptions
from streamll.sinks.rabbitmq_options import RabbitMQOptions
from streamll.sinks.redis_options import RedisOptions

Page = Sequence[Received] | TransportError | None


class ScriptedSource:
    """Answers each `read` with the next page of a script, which may be an error, or None for the end."""

    shown = "script"
    restarts = 0
    cuts = 0
    pending_lost = 0
    whole = False

    def __init__(self, *pages: Page, opens: Sequence[TransportError | None] = ()) -> None:
        self.pages = list(pages)
        self.opens = list(opens)
        self.opened = self.closed = 0
        self.done: list[Any] = []
        self.rejected: list[Any] = []
        self.refuse_acks: list[TransportError] = []

    def open(self) -> None:
        self.opened += 1
        error = self.opens.pop(0) if self.opens else None
        if error is not None:
            raise error

    def read(self, wait: float) -> Sequence[Received] | None:
        page = self.pages.pop(0) if self.pages else None
        if isinstance(page, TransportError):
            raise page
        return page

    def acknowledge(self, done: Sequence[Any], rejected: Sequence[Any]) -> None:
        if self.refuse_acks:
            raise self.refuse_acks.pop(0)
        self.done += done
        self.rejected += rejected

    def interrupt(self) -> None:
        """Nothing here waits."""

    def close(self) -> None:
        self.closed += 1


def entry(seq: int, producer: str = "p") -> Received:
    """An entry that nobody acknowledges."""
    event = StreamllEvent(event_type="t", operation=str(seq))
    return Received(event, "", codec.encode(event), producer, seq, f"{seq}-0")


def task(
    seq: int, coming: Coming = Coming.NEW, identity: Hashable | None = "", token: Any = "", producer: str = "p"
) -> Received:
    """An entry that is to be acknowledged; known by its number, with a token of the same name, unless told otherwise."""
    item = entry(seq, producer)
    item.ticket = Ticket(token or f"token {seq}", seq if identity == "" else identity, coming)
    return item


def scrambled() -> Received:
    event, error = read_event(b"\xc1", 100)
    return Received(event, error, b"\xc1", "", 0, "9-0", ticket=Ticket("token of the scrambled", None))


def consume(source: ScriptedSource, **options: Any) -> Consumer:
    return Consumer(source, ConsumerOptions(**{"retry_base": 0.0, **options}))


def seqs(consumer: Consumer) -> list[int]:
    return [item.seq for item in consumer]


class TestSeenNumbers:
    @given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 30))))
    def test_within_its_window_it_is_a_set(self, numbers: list[tuple[str, int]]) -> None:
        seen, model = SeenNumbers(1000), set[tuple[str, int]]()
        for number in numbers:
            assert seen.add(*number) == (number not in model)
            model.add(number)

    def test_numbers_that_follow_each_other_cost_one_run(self) -> None:
        seen = SeenNumbers(10)
        assert all(seen.add("p", n) for n in range(1, 5001))
        assert len(seen) == 1
        assert not seen.add("p", 1)

    def test_numbers_in_any_order_grow_together(self) -> None:
        seen = SeenNumbers(10)
        for n in (5, 1, 3, 2, 4):
            assert seen.add("p", n)
        assert len(seen) == 1

    @given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 1000)), max_size=200), st.integers(1, 8))
    def test_memory_is_bounded(self, numbers: list[tuple[str, int]], window: int) -> None:
        seen = SeenNumbers(window)
        for number in numbers:
            seen.add(*number)
            assert len(seen) <= window

    def test_the_producer_that_was_silent_longest_is_forgotten_first(self) -> None:
        seen = SeenNumbers(2)
        for producer in ("a", "b", "a", "c"):
            seen.add(producer, 1)
        assert not seen.add("a", 1)
        assert seen.add("b", 1)

    def test_what_has_no_number_is_always_new(self) -> None:
        seen = SeenNumbers(10)
        for producer, seq in (("", 1), ("p", 0), ("x" * 1000, 1)):
            assert seen.add(producer, seq)
            assert seen.add(producer, seq)
        assert len(seen) == 0

    def test_a_window_of_zero_remembers_nothing(self) -> None:
        seen = SeenNumbers(0)
        assert seen.add("p", 1)
        assert seen.add("p", 1)


def note(seq: int, kind: str = GAP) -> Received:
    """A sink's own word."""
    event = StreamllEvent(event_type=kind, data={"count": 1, "ranges": [[seq, seq]], "reasons": {"overflow": 1}})
    return Received(event, "", codec.encode(event), "p", seq, f"{seq}-0")


def due_note(seq: int) -> Received:
    item = note(seq)
    item.ticket = Ticket(f"token {seq}", seq)
    return item


class TestNotes:
    def test_are_left_out_and_counted(self) -> None:
        consumer = consume(ScriptedSource([note(1), entry(2), note(3), note(4, CLOSING)], [note(5)], [entry(6)], None))
        assert seqs(consumer) == [2, 6]
        stats = consumer.stats()
        assert (stats.received, stats.notes) == (2, 4)
        assert stats.bytes == 2 * len(entry(2).payload)

    def test_are_handed_over_to_whoever_asks(self) -> None:
        consumer = consume(ScriptedSource([note(1), entry(2)], None), notes=True)
        assert [(item.seq, item.note) for item in consumer] == [(1, True), (2, False)]
        assert (consumer.stats().received, consumer.stats().notes) == (2, 1)

    def test_count_for_doubles_and_the_position(self) -> None:
        consumer = consume(ScriptedSource([entry(1), note(2), entry(2), entry(1), note(3), note(3)], None))
        next(consumer)
        assert consumer.stats().position == "1-0"
        assert seqs(consumer) == []
        stats = consumer.stats()
        assert (stats.position, stats.duplicates, stats.notes) == ("3-0", 3, 2)

    def test_that_are_left_out_are_acknowledged(self) -> None:
        source = ScriptedSource([task(1), due_note(2), task(3), due_note(4)], None)
        with consume(source) as consumer:
            assert seqs(consumer) == [1, 3]
        assert source.done == ["token 2", "token 4"]

    def test_that_are_handed_over_are_not(self) -> None:
        source = ScriptedSource([due_note(2)], None)
        with consume(source, notes=True) as consumer:
            (item,) = consumer
        assert source.done == []
        assert item.note

    def test_end_no_loop_before_its_time(self) -> None:
        consumer = consume(ScriptedSource([note(1)], [entry(2)], [note(3)], [], None), timeout=0.0)
        assert seqs(consumer) == [2]
        assert seqs(consumer) == []
        assert consumer.ended

    def test_async(self) -> None:
        async def read(**options: Any) -> list[int]:
            async with consume(ScriptedSource([note(1), entry(2)], [note(3)], [entry(4)], None), **options) as consumer:
                return [item.seq async for item in consumer]

        assert asyncio.run(read()) == [2, 4]
        assert asyncio.run(read(notes=True)) == [1, 2, 3, 4]

    def test_are_no_events_of_the_program(self) -> None:
        consumer = consume(ScriptedSource([note(1), entry(2)], None))
        assert [event.operation for event in consumer.events()] == ["2"]

    def test_an_item_that_is_none_of_anybodys_is_no_note(self) -> None:
        assert not scrambled().note


class TestLeavingEventsUndecoded:
    def test_only_notes_are_decoded(self) -> None:
        for event, is_note in (
            (StreamllEvent(event_type=GAP), True),
            (StreamllEvent(event_type=CLOSING, data={"text": "x" * 5000}), True),
            (StreamllEvent(event_type="t"), False),
            (StreamllEvent(event_type="t", operation=GAP), False),
            (StreamllEvent(event_type="t", data={"more": "x" * LONGEST_NOTE, "text": GAP}), False),
        ):
            for content_type in (codec.MSGPACK, codec.JSON):
                found, error = read_note(codec.encode(event, content_type), 10_000_000)
                assert error == ""
                assert (found is not None) == is_note
                assert found in (None, event)

    def test_what_may_be_a_note_and_cannot_be_read_is_said(self) -> None:
        assert "bad MessagePack" in read_note(b"\xc1 streamll.gap", 100)[1]
        assert (
            "none is that long"
            in read_note(codec.encode(StreamllEvent(event_type=GAP, data={"x": "x" * LONGEST_NOTE})), 10**7)[1]
        )
        assert (
            "max_event_bytes" in read_note(codec.encode(StreamllEvent(event_type=GAP, data={"x": "x" * 500})), 100)[1]
        )
        assert read_note(b"\xc1", 100) == (None, "")

    def test_items_have_their_envelope(self) -> None:
        bare = Received(None, "", b"...", "p", 7, "7-0")
        consumer = consume(ScriptedSource([bare], None), decode=False)
        assert [(item.producer, item.seq, item.event) for item in consumer] == [("p", 7, None)]
        assert consumer.stats().undecodable == 0

    def test_there_are_no_events_then(self) -> None:
        with pytest.raises(ConfigurationError, match="decode=False"):
            consume(ScriptedSource(), decode=False).events()


class TestCuts:
    def test_the_item_behind_a_cut_says_so(self) -> None:
        class Overtaken(ScriptedSource):
            def read(self, wait: float) -> Sequence[Received] | None:
                self.cuts = int(len(self.pages) < 4)  # from the second page on
                return super().read(wait)

        consumer = consume(Overtaken([entry(1), entry(2)], [entry(7), entry(8)], [entry(9)], None))
        assert [(item.seq, item.after_cut) for item in consumer] == [
            (1, False),
            (2, False),
            (7, True),
            (8, False),
            (9, False),
        ]
        assert consumer.stats().cuts == 1

    def test_whether_all_was_read_is_for_the_source_to_say(self) -> None:
        source = ScriptedSource()
        consumer = consume(source)
        for whole in (False, True):
            source.whole = whole
            assert consumer.whole == whole
        assert consumer.shown == "script"


class TestIterating:
    def test_everything_in_its_order_until_the_end(self) -> None:
        source = ScriptedSource([entry(1), entry(2)], [], [entry(3)], None)
        with consume(source) as consumer:
            assert seqs(consumer) == [1, 2, 3]
            stats = consumer.stats()
        assert (stats.received, stats.position, stats.duplicates, stats.reconnects) == (3, "3-0", 0, 0)
        assert stats.bytes > 0
        assert source.closed == 1

    def test_nothing_is_opened_before_it_is_needed(self) -> None:
        source = ScriptedSource()
        consume(source).close()
        assert source.opened == 0

    def test_leaving_a_loop_loses_nothing(self) -> None:
        consumer = consume(ScriptedSource([entry(1), entry(2), entry(3)], None))
        for item in consumer:
            if item.seq == 2:
                break
        assert seqs(consumer) == [3]

    def test_the_position_is_that_of_what_was_handed_over(self) -> None:
        consumer = consume(ScriptedSource([entry(1), entry(2)], None))
        next(consumer)
        assert consumer.stats().position == "1-0"

    def test_what_cannot_be_decoded_is_handed_over_and_counted(self) -> None:
        consumer = consume(ScriptedSource([entry(1), scrambled(), entry(2)], None))
        items = list(consumer)
        assert [item.event is None for item in items] == [False, True, False]
        assert "MessagePack" in items[1].error
        assert items[1].payload == b"\xc1"
        assert consumer.stats().undecodable == 1

    def test_too_long_an_entry_is_not_decoded(self) -> None:
        event, error = read_event(codec.encode(StreamllEvent(event_type="t", operation="x" * 500)), 100)
        assert event is None
        assert "max_event_bytes=100" in error

    def test_a_timeout_ends_the_loop_and_not_the_consumer(self) -> None:
        source = ScriptedSource([], [entry(1)], [], None)
        consumer = consume(source, timeout=0.0)
        assert seqs(consumer) == []
        assert not consumer.ended
        assert seqs(consumer) == [1]
        assert seqs(consumer) == []
        assert seqs(consumer) == []
        assert consumer.ended

    def test_after_close_there_is_nothing_more(self) -> None:
        source = ScriptedSource([entry(1), entry(2)], [entry(3)])
        consumer = consume(source)
        next(consumer)
        consumer.close()
        consumer.close()
        assert seqs(consumer) == []
        assert source.closed >= 1

    def test_events_alone(self) -> None:
        consumer = consume(ScriptedSource([entry(1), scrambled(), entry(2)], None))
        assert [event.operation for event in consumer.events()] == ["1", "2"]


class TestDoubles:
    def test_a_double_is_left_out_and_counted(self) -> None:
        consumer = consume(ScriptedSource([entry(1), entry(2), entry(1)], [entry(2), entry(3), entry(3, "q")], None))
        assert seqs(consumer) == [1, 2, 3, 3]
        assert consumer.stats().duplicates == 2

    def test_without_a_window_doubles_are_handed_over(self) -> None:
        consumer = consume(ScriptedSource([entry(1), entry(1)], None), dedup_window=0)
        assert seqs(consumer) == [1, 1]

    def test_what_has_no_producer_is_never_a_double(self) -> None:
        consumer = consume(ScriptedSource([entry(1, ""), entry(1, "")], None))
        assert seqs(consumer) == [1, 1]

    def test_a_double_of_what_is_to_be_acknowledged_is_acknowledged(self) -> None:
        source = ScriptedSource([task(1), task(1, identity="other", token="double")], None)
        with consume(source) as consumer:
            assert seqs(consumer) == [1]
        assert source.done == ["double"]  # the first one still waits for its owner


class TestComingAgain:
    def test_what_we_still_hold_is_not_handed_over_twice(self) -> None:
        source = ScriptedSource([task(1)], [task(1, Coming.RETURNED, token="new")], [task(2)], None)
        with consume(source) as consumer:
            first = next(consumer)
            assert next(consumer).seq == 2
            first.ack()
        assert source.done == ["token 1", "new"]

    def test_doubles_that_both_come_back_are_acknowledged_together(self) -> None:
        source = ScriptedSource([task(1, Coming.RETURNED), task(1, Coming.RETURNED, token="double")], None)
        with consume(source) as consumer:
            items = list(consumer)
            assert source.done == []
            items[0].ack()
        assert len(items) == 1
        assert source.done == ["token 1", "double"]

    def test_what_was_acknowledged_in_vain_is_acknowledged_again(self) -> None:
        source = ScriptedSource([task(1)], [task(1, Coming.RETURNED, token="new")], None)
        with consume(source) as consumer:
            next(consumer).ack()
            assert seqs(consumer) == []
        assert source.done == ["token 1", "new"]
        assert consumer.stats().duplicates == 1

    def test_what_another_one_had_is_handed_over(self) -> None:
        source = ScriptedSource([task(1, Coming.RETURNED), task(2, Coming.EXPIRED), task(3)], None)
        consumer = consume(source)
        assert [(item.seq, item.redelivered) for item in consumer] == [(1, True), (2, True), (3, False)]
        assert consumer.stats().redelivered == 2

    def test_what_we_held_for_too_long_is_due_again(self) -> None:
        source = ScriptedSource([task(1)], [task(1, Coming.EXPIRED)], None)
        consumer = consume(source)
        assert [(item.seq, item.redelivered) for item in consumer] == [(1, False), (1, True)]
        assert consumer.stats().duplicates == 0

    def test_what_expired_after_it_was_acknowledged_is_not(self) -> None:
        source = ScriptedSource([task(1)], [task(1, Coming.EXPIRED, token="again")], None)
        with consume(source) as consumer:
            next(consumer).ack()
            assert seqs(consumer) == []
        assert source.done == ["token 1", "again"]

    def test_what_cannot_be_told_apart_is_handed_over(self) -> None:
        source = ScriptedSource(
            [task(1, identity=None, producer="")], [task(1, Coming.RETURNED, identity=None, producer="")], None
        )
        assert seqs(consume(source)) == [1, 1]

    def test_what_had_to_be_forgotten_is_handed_over_again_not_acknowledged(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("streamll.consumers.base._MOST_UNDER_WAY", 2)
        source = ScriptedSource([task(1), task(2), task(3)], [task(1, Coming.RETURNED)], None)
        with consume(source) as consumer:
            assert seqs(consumer) == [1, 2, 3, 1]
        assert source.done == []


class TestAcknowledging:
    def test_the_source_hears_of_it_before_the_next_page(self) -> None:
        source = ScriptedSource([task(1), task(2)], [task(3)], None)
        with consume(source) as consumer:
            for item in consumer:
                if item.seq == 3:
                    assert source.done == ["token 1", "token 2"]
                item.ack()
                item.ack()
        assert source.done == ["token 1", "token 2", "token 3"]

    def test_many_are_sent_within_a_page(self) -> None:
        source = ScriptedSource([task(n) for n in range(1, 301)], None)
        consumer = consume(source)
        for item in consumer:
            item.ack()
            if item.seq == 250:
                assert len(source.done) >= 100
        assert len(source.done) == 300

    def test_rejecting(self) -> None:
        source = ScriptedSource([task(1), task(2)], None)
        with consume(source) as consumer:
            next(consumer).reject()
            next(consumer).ack()
        assert (source.done, source.rejected) == (["token 2"], ["token 1"])

    def test_without_effect_where_nothing_is_acknowledged(self) -> None:
        source = ScriptedSource([entry(1)], None)
        with consume(source) as consumer:
            next(consumer).ack()
        assert source.done == []

    def test_what_could_not_be_sent_is_sent_on_the_next_connection(self) -> None:
        source = ScriptedSource([task(1), task(2)], [task(3)], None)
        source.refuse_acks = [UnavailableError("gone")]
        with consume(source) as consumer:
            for item in consumer:
                item.ack()
        assert source.done == ["token 1", "token 2", "token 3"]
        assert consumer.stats().reconnects == 1

    def test_events_acknowledge_the_one_before_and_reject_what_is_none(self) -> None:
        source = ScriptedSource([task(1), scrambled(), task(2)], None)
        with consume(source) as consumer:
            events = consumer.events()
            next(events)
            next(events)
        assert (source.done, source.rejected) == (["token 1"], ["token of the scrambled"])  # 2 was not done with

    def test_events_acknowledge_the_last_one_at_the_end(self) -> None:
        source = ScriptedSource([task(1), task(2)], None)
        with consume(source) as consumer:
            assert len(list(consumer.events())) == 2
        assert source.done == ["token 1", "token 2"]


class TestFrames:
    """Events that came in one entry, which is acknowledged as a whole."""

    def frame(self, *numbers: int, token: str = "frame", coming: Coming = Coming.NEW) -> list[Received]:
        sheaf = Sheaf(token, len(numbers))
        return [task(number, coming, token=sheaf) for number in numbers]

    def test_its_source_hears_of_it_when_all_of_its_events_are_settled(self) -> None:
        source = ScriptedSource([*self.frame(1, 2, 3), *self.frame(4, 5, token="other")])
        with consume(source, follow=False) as consumer:
            items = list(consumer)
            for item in (items[2], items[2], items[0], items[3]):
                item.ack()
            consumer._send_acks()
            assert (source.done, source.rejected) == ([], [])
            items[4].reject()
            items[1].ack()
        assert (source.done, source.rejected) == (["frame"], ["other"])

    def test_doubles_in_it_are_settled_by_themselves(self) -> None:
        source = ScriptedSource([*self.frame(1, 2), *self.frame(2, 1, token="doubles")])
        with consume(source, follow=False) as consumer:
            assert seqs(consumer) == [1, 2]
        assert source.done == ["doubles"]

    def test_one_that_comes_again_while_it_is_under_way_is_acknowledged_with_the_events_that_are_held(self) -> None:
        source = ScriptedSource(self.frame(1, 2), self.frame(1, 2, token="again", coming=Coming.RETURNED))
        with consume(source, follow=False) as consumer:
            items = [next(consumer), next(consumer)]
            items[0].ack()
            assert seqs(consumer) == []
            consumer._send_acks()
            assert source.done == []
            items[1].ack()
        assert source.done == ["frame", "again"]


class TestReconnecting:
    def test_a_lost_connection_is_made_again(self, caplog: pytest.LogCaptureFixture) -> None:
        source = ScriptedSource(
            [entry(1)], UnavailableError("cut"), [entry(2)], None, opens=[None, UnavailableError("refused"), None]
        )
        consumer = consume(source)
        assert seqs(consumer) == [1, 2]
        stats = consumer.stats()
        assert (source.opened, stats.reconnects, stats.last_error) == (3, 1, "refused")
        assert [record.getMessage() for record in caplog.records] == ["connection lost, trying again: cut"]

    def test_the_first_connection_is_tried_once(self) -> None:
        source = ScriptedSource([entry(1)], None, opens=[UnavailableError("refused")])
        consumer = consume(source)
        with pytest.raises(ConsumerError, match="refused"):
            next(consumer)
        assert seqs(consumer) == [1]  # whoever asks again gets another try

    def test_what_waiting_does_not_mend_is_raised(self) -> None:
        consumer = consume(ScriptedSource([entry(1)], FatalError("no permission")))
        next(consumer)
        with pytest.raises(ConsumerError, match="no permission"):
            next(consumer)

    def test_giving_up(self) -> None:
        source = ScriptedSource([entry(1)], UnavailableError("cut"), opens=[None, UnavailableError("refused")])
        consumer = consume(source, give_up_after=0.0)
        next(consumer)
        with pytest.raises(ConsumerError, match="cut"):
            next(consumer)

    def test_a_timeout_ends_the_waiting_for_a_connection_too(self) -> None:
        source = ScriptedSource([entry(1)], *[UnavailableError("cut")] * 50)
        consumer = consume(source, timeout=0.0, retry_base=1000.0, retry_bound=1000.0)
        assert seqs(consumer) == [1]


class WaitingSource(ScriptedSource):
    """Waits, when its script is at its end, until it is interrupted or told to go on."""

    def __init__(self, *pages: Page) -> None:
        super().__init__(*pages)
        self.waiting = threading.Event()
        self.go_on = threading.Event()

    def read(self, wait: float) -> Sequence[Received] | None:
        if not self.pages:
            self.waiting.set()
            self.go_on.wait(30.0)
            self.go_on.clear()
            return self.pages.pop(0) if self.pages else []  # type: ignore[return-value]  # no error in these scripts
        return super().read(wait)

    def interrupt(self) -> None:
        self.go_on.set()


class TestAsync:
    def test_iterating(self) -> None:
        async def main() -> list[int]:
            async with consume(ScriptedSource([entry(1), entry(2)], [], [entry(3)], None)) as consumer:
                return [item.seq async for item in consumer]

        assert asyncio.run(main()) == [1, 2, 3]

    def test_events_and_their_acknowledgements(self) -> None:
        source = ScriptedSource([task(1), scrambled()], [task(2)], None)

        async def main() -> list[str]:
            async with consume(source) as consumer:
                return [event.operation async for event in consumer.events()]

        assert asyncio.run(main()) == ["1", "2"]
        assert (source.done, source.rejected) == (["token 1", "token 2"], ["token of the scrambled"])

    def test_many_acknowledgements_are_sent_within_a_page(self) -> None:
        source = ScriptedSource([task(n) for n in range(1, 202)], None)

        async def main() -> None:
            async with consume(source) as consumer:
                async for item in consumer:
                    item.ack()
                    if item.seq == 201:
                        assert len(source.done) >= 100

        asyncio.run(main())
        assert len(source.done) == 201

    def test_an_error_reaches_the_loop(self) -> None:
        async def main() -> None:
            await anext(consume(ScriptedSource(opens=[FatalError("no permission")])))

        with pytest.raises(ConsumerError, match="no permission"):
            asyncio.run(main())

    def test_cancelling_is_prompt_and_loses_nothing(self) -> None:
        source = WaitingSource([entry(1)])

        async def main() -> None:
            consumer = consume(source)
            assert (await anext(consumer)).seq == 1
            waiting = asyncio.ensure_future(anext(consumer))
            await asyncio.to_thread(source.waiting.wait, 10.0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            source.pages.append([entry(2)])  # comes while nobody waits for it
            source.go_on.set()
            assert (await anext(consumer)).seq == 2
            source.pages.append(None)
            source.go_on.set()
            assert [item async for item in consumer] == []
            await consumer.aclose()

        asyncio.run(main())

    def test_closing_ends_a_loop_that_waits(self) -> None:
        source = WaitingSource()

        async def main() -> None:
            consumer = consume(source)
            waiting = asyncio.ensure_future(anext(consumer))
            await asyncio.to_thread(source.waiting.wait, 10.0)
            await consumer.aclose()
            with pytest.raises(StopAsyncIteration):
                await waiting

        asyncio.run(main())
        assert source.closed >= 1

    def test_closing_from_another_thread_ends_a_loop_that_waits(self) -> None:
        source = WaitingSource()
        consumer = consume(source)
        items: list[Received] = []
        reader = threading.Thread(target=lambda: items.extend(consumer))
        reader.start()
        assert source.waiting.wait(10.0)
        consumer.close()
        reader.join(10.0)
        assert not reader.is_alive()
        assert items == []
        assert source.closed >= 1


class TestAddresses:
    def test_a_scheme_that_nothing_can_be_read_from(self) -> None:
        with pytest.raises(ConfigurationError, match="'terminal': events can be read from file, amqp"):
            consumer_for("terminal://")

    @pytest.mark.parametrize(
        ("url", "kind"),
        [
            ("redis://h/0?stream=app&max_stream_length=5&buffer_size=10", redis_consumer.RedisConsumer),
            ("redis+cluster://h,h2?stream=app", redis_consumer.RedisConsumer),
            ("amqp://u:p@h/v?exchange=app&queue=q&routing_key=%7Bevent_type%7D", rabbitmq_consumer.RabbitMQConsumer),
            ("file:///tmp/events.jsonl?batch_size=10", FileConsumer),
        ],
    )
    def test_a_sinks_url_is_read_back(self, url: str, kind: type[Consumer]) -> None:
        consumer = consumer_for(url)
        assert type(consumer) is kind
        assert "app" in repr(consumer) or "queue q" in repr(consumer) or "events.jsonl" in repr(consumer)

    @pytest.mark.parametrize("url", ["redis://h/?strem=a", "amqp://u:p@h/?quue=a", "file:///tmp/a?strt=end"])
    def test_an_unknown_option_is_refused(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match=r"unknown option '(strem|quue|strt)'"):
            consumer_for(url)

    @pytest.mark.parametrize(
        ("url", "options"),
        [
            ("redis://h", {"start": "yesterday"}),
            ("redis://h", {"stream": ""}),
            ("redis://h", {"consumer": "c"}),
            ("redis://h", {"page_size": 0}),
            ("amqp://u:p@h", {"start": "1-1", "queue": "q"}),
            ("amqp://u:p@h", {"exchange": ""}),
            ("amqp://u:p@h", {"exchange": "app", "start": "beginning"}),
            ("amqp://u:p@h", {"exchange": "app", "follow": False}),
            ("file:///tmp/a", {"start": "x"}),
            ("file://host/tmp/a", {}),
        ],
    )
    def test_what_cannot_work_is_refused_at_once(self, url: str, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError):
            consumer_for(url, **options)

    def test_a_path_is_no_empty_text(self) -> None:
        with pytest.raises(ConfigurationError, match="empty path"):
            FileConsumer("")

    def test_no_credential_is_shown(self) -> None:
        for url in ("redis://user:secret@h/0", "amqp://user:secret@h/"):
            assert "secret" not in repr(consumer_for(url))

    @pytest.mark.parametrize(
        ("known", "consumer", "sink"),
        [
            (redis_consumer.SINK_OPTIONS, redis_consumer.RedisConsumerOptions, RedisOptions),
            (rabbitmq_consumer.SINK_OPTIONS, rabbitmq_consumer.RabbitMQConsumerOptions, RabbitMQOptions),
            (file_consumer.SINK_OPTIONS, file_consumer.FileConsumerOptions, FileOptions),
        ],
    )
    def test_every_option_of_the_sink_is_known(
        self, known: frozenset[str], consumer: type[ConsumerOptions], sink: type[OptionSet]
    ) -> None:
        assert known - {"name"} == {*sink.names()} - {*consumer.names()} - {*SinkOptions.names()}
