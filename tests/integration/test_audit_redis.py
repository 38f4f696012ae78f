"""`streamll audit` on a real Redis: losses, notes, trimming, dead letters, and following what happens."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis

from streamll import codec
from streamll.consumers import RedisConsumer
from streamll.models import PRIORITIES, StreamllEvent
from streamll.sinks.redis import RedisSink
from tests.fixtures.redis import RedisEndpoint, RedisServer
from tests.fixtures.waiting import wait_until
from tests.integration.audits import EVENT, Following, audit, closing, counted, following, gap, outcome

__all__ = ["following"]

pytestmark = [pytest.mark.integration, pytest.mark.redis]

P, CHILD = "9f0c2d4e6a8b1c3d", "9f0c2d4e6a8b1c3d.0123456789abcdef"


class Stream:
    """A stream that is written to as RedisSink does it."""

    def __init__(self, server: RedisEndpoint, client: redis.Redis, key: str) -> None:
        self.client = client
        self.key = key
        self.url = f"{server.url}?stream={key}"

    def add(self, *numbers: int, producer: str = P, event: StreamllEvent = EVENT, dead: bool = False) -> None:
        pipe = self.client.pipeline(transaction=False)
        payload = codec.encode(event)
        for number in numbers:
            fields: dict[Any, Any] = {"event": payload, "producer": producer, "seq": number}
            if dead:
                fields["reason"] = "too large"
            pipe.xadd(f"{self.key}:dead-letter" if dead else self.key, fields)
        pipe.execute()

    def ids(self) -> list[str]:
        found: Any = self.client.xrange(self.key)
        return [ident.decode() for ident, _ in found]

    def declare(self, *ranges: tuple[int, int], producer: str = P) -> None:
        self.add(ranges[-1][1], producer=producer, event=gap(*ranges))

    def close(self, last: int, producer: str = P) -> None:
        self.add(last + 1, producer=producer, event=closing(last))


@pytest.fixture
def stream(redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str) -> Stream:
    return Stream(redis_server, redis_client, cleanup_stream)


class TestReading:
    def test_what_a_sink_wrote(self, redis_server: RedisEndpoint, cleanup_stream: str) -> None:
        with RedisSink(url=redis_server.url, stream_key=cleanup_stream) as sink:
            assert all(sink.handle_event(EVENT) for _ in range(3000))
        found = outcome(f"{redis_server.url}?stream={cleanup_stream}", code=0)
        (row,) = found["producers"]
        assert counted(row) == {"events": 3000}
        assert row["producer"] == sink.stats().producer
        assert found["whole"]

    def test_what_a_sink_had_to_drop(self, own_redis: Callable[..., RedisServer]) -> None:
        """The sink's own account and what is in the broker say the same."""
        server = own_redis()
        with RedisSink(url=server.url, buffer_size=200, batch_size=50, send_timeout=1.0, retry_bound=0.1) as sink:
            assert all(sink.handle_event(EVENT) for _ in range(100))
            assert sink.flush()
            server.freeze()
            for number in range(1000):
                sink.handle_event(StreamllEvent(event_type="t", priority=PRIORITIES[number % 3]))
            server.thaw()
            assert wait_until(sink.flush)
        stats = sink.stats()
        dropped = {reason: number for reason, number in stats.dropped.items() if number}
        assert sum(dropped.values()) > 0
        found = outcome(server.url, code=0)
        (row,) = found["producers"]
        assert (row["counts"]["events"], row["counts"]["declared"]) == (stats.delivered, sum(dropped.values()))
        assert row["reasons"] == dropped
        assert row["closed"]

    def test_several_producers(self, stream: Stream) -> None:
        stream.add(1, 2, 3)
        stream.declare((4, 6))
        stream.add(7)
        stream.add(1, 2, producer=CHILD)
        stream.close(2, producer=CHILD)
        stream.add(1, 3, 2, 3, producer="other")
        found = outcome(stream.url, code=0)
        rows = {row["producer"]: row for row in found["producers"]}
        assert counted(rows[P]) == {"events": 4, "declared": 3}
        assert counted(rows[CHILD]) == {"events": 2}
        assert (rows[CHILD]["parent"], rows[CHILD]["closed"], rows[P]["closed"]) == (P, True, False)
        assert counted(rows["other"]) == {"events": 3, "doubles": 1, "out_of_order": 1}

    def test_a_loss_that_nobody_declared(self, stream: Stream) -> None:
        stream.add(1, 2, 5)
        stream.add(1, producer=CHILD)
        stream.close(3, producer=CHILD)
        done = audit(stream.url, code=1)
        assert f"{P}: UNDECLARED: 2 numbers missing: 3-4" in done.stdout
        assert f"{CHILD}: UNDECLARED: 2 numbers missing: 2-3" in done.stdout
        assert done.stdout.splitlines()[-1].startswith("UNDECLARED LOSS: 4 numbers of 2 producers")

    def test_a_beginning_that_was_never_trimmed(self, stream: Stream) -> None:
        stream.add(3, 4)
        if "entries-added" not in stream.client.xinfo_stream(stream.key):
            pytest.skip("this Redis does not say how many entries there ever were")
        assert outcome(stream.url, code=1)["producers"][0]["ranges"] == [[1, 2]]

    def test_a_trimmed_stream_begins_where_it_begins(self, stream: Stream) -> None:
        stream.add(*range(1, 101))
        stream.client.xtrim(stream.key, maxlen=40, approximate=False)
        found = outcome(stream.url, code=0)
        assert (found["whole"], found["producers"][0]["first"]) == (False, 61)
        assert f"{P}: begins at 61: what came before was trimmed, or not read" in audit(stream.url, code=0).stdout

    def test_reading_that_begins_later(self, stream: Stream) -> None:
        stream.add(1, 5, 6, 7)
        found = outcome(stream.url, "--start", stream.ids()[1], code=0)
        assert (found["whole"], found["producers"][0]["first"]) == (False, 6)

    def test_entries_of_others(self, stream: Stream) -> None:
        stream.add(1, 2)
        stream.client.xadd(stream.key, {"temperature": "21"})
        stream.client.xadd(stream.key, {"event": b"\xc1"})
        stream.client.xadd(stream.key, {"event": b"\xc1", "producer": "p", "seq": "x"})
        stream.client.xadd(stream.key, {"event": b"\xc1 streamll.gap", "producer": P, "seq": "4"})
        stream.add(5)
        found = outcome(stream.url, code=1)
        assert found["strangers"] == 3
        assert counted(found["producers"][0]) == {"events": 3, "malformed": 1, "undeclared": 1, "gaps": 1}

    def test_nothing_there(self, stream: Stream) -> None:
        done = audit(stream.url, code=2)
        assert "nothing to judge" in done.stderr
        assert done.stdout == ""

    def test_a_key_of_another_kind(self, stream: Stream) -> None:
        stream.client.set(stream.key, "hello")
        assert "WRONGTYPE" in audit(stream.url, code=2).stderr

    def test_nobody_there(self) -> None:
        done = audit("redis://user:secret@127.0.0.1:1/0", code=2)
        assert "127.0.0.1:1" in done.stderr
        assert "secret" not in done.stderr

    def test_nothing_is_taken_and_no_group_is_made(self, stream: Stream) -> None:
        stream.add(1, 2, 3)
        audit(f"{stream.url}&group=g&consumer=c", code=0)
        assert stream.client.xlen(stream.key) == 3
        assert stream.client.xinfo_groups(stream.key) == []


class TestDeadLetters:
    def test_beside_the_stream_they_are_no_loss(self, stream: Stream) -> None:
        stream.add(1, 3, 5)
        stream.add(2, 4, dead=True)
        assert counted(outcome(stream.url, code=0)["producers"][0]) == {"events": 3, "dead_letters": 2}
        assert counted(outcome(stream.url, "--dead-letters", "none", code=1)["producers"][0])["undeclared"] == 2

    def test_where_the_sinks_url_says(self, stream: Stream) -> None:
        stream.add(1, 3)
        fields: dict[Any, Any] = {"event": b"...", "producer": P, "seq": 2, "reason": "poison"}
        stream.client.xadd(f"{stream.key}-rejected", fields)
        assert outcome(stream.url, code=1)
        assert outcome(f"{stream.url}&dead_letter_stream={stream.key}-rejected", code=0)
        elsewhere = stream.url.replace(stream.key, f"{stream.key}-rejected")
        assert outcome(stream.url, "--dead-letters", elsewhere, code=0)

    def test_that_cannot_be_read(self, stream: Stream) -> None:
        stream.add(1)
        stream.client.set(f"{stream.key}:dead-letter", "hello")
        assert "WRONGTYPE" in audit(stream.url, code=2).stderr
        audit(stream.url, "--dead-letters", "none", code=0)


class TestFollowing:
    def test_what_happens_is_told(self, stream: Stream, following: Callable[..., Following]) -> None:
        stream.add(1, 2)
        command = following(stream.url, "--grace", "0.2")
        assert command.change("producer")["producer"] == P
        stream.add(3)
        stream.declare((4, 6))
        assert command.change("declared")["count"] == 3
        stream.add(7, 10)
        assert command.change("undeclared")["text"].endswith(": 8-9")
        stream.add(8)
        assert command.change("found")["count"] == 1
        stream.add(8)
        assert command.change("double")["count"] == 1
        stream.add(9, dead=True)
        assert {command.change("dead_letter")["count"], command.change("found")["count"]} == {1}
        stream.add(1, producer=CHILD)
        assert command.change("producer")["producer"] == CHILD
        stream.close(1, producer=CHILD)
        assert command.change("closed")["producer"] == CHILD
        code, found = command.end(signal.SIGINT)
        assert (code, command.errors) == (0, [])
        assert found["total"]["events"] == 7
        assert stream.client.xlen(stream.key) == 10

    @pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
    def test_it_ends_with_its_outcome(self, stream: Stream, following: Callable[..., Following], sig: int) -> None:
        stream.add(1, 3)
        command = following(stream.url, "--grace", "0")
        command.until("undeclared")
        code, found = command.end(sig)
        assert (code, found["status"], found["total"]["undeclared"], found["waiting"]) == (1, 1, 1, 0)

    def test_what_may_still_come_is_not_judged(self, stream: Stream, following: Callable[..., Following]) -> None:
        stream.add(1, 3)
        command = following(stream.url, "--grace", "600")
        command.change("producer")
        code, found = command.end()
        assert (code, found["total"]["undeclared"], found["waiting"]) == (0, 1, 1)

    def test_from_now_on(self, stream: Stream, following: Callable[..., Following]) -> None:
        stream.add(1, 9)
        command = following(stream.url, "--start", "end", "--grace", "0")
        beat = 100

        def is_heard() -> bool:
            nonlocal beat
            beat += 1
            stream.add(beat)
            return not command.quiet(0.2)

        assert wait_until(is_heard)
        code, found = command.end()
        assert code == 0
        assert found["producers"][0]["first"] > 100

    def test_a_stream_that_is_not_there_yet(self, stream: Stream, following: Callable[..., Following]) -> None:
        command = following(stream.url)
        assert wait_until(lambda: command.errors)
        assert "does not exist (yet)" in command.errors[0]
        assert "dead-letter" not in "".join(command.errors)
        stream.add(1)
        command.change("producer")
        assert command.end()[0] == 0

    def test_a_server_that_restarts(
        self, own_redis: Callable[..., RedisServer], following: Callable[..., Following]
    ) -> None:
        server = own_redis(appendonly="yes", appendfsync="always")
        with server.client() as client:
            Stream(server, client, "app").add(1, 2)
        command = following(f"{server.url}?stream=app&retry_bound=0.2", "--grace", "0")
        command.change("producer")
        server.restart()
        with server.client() as client:
            Stream(server, client, "app").add(3, 5)
        assert command.until("undeclared")["count"] == 1
        code, found = command.end()
        assert (code, found["total"]["events"], found["total"]["doubles"]) == (1, 4, 0)


class TestReaders:
    """What the readers tell, for an audit to know how far to trust what it has read."""

    def read(self, url: str, **options: Any) -> RedisConsumer:
        return RedisConsumer(url, follow=False, **options)

    def test_whether_it_is_the_whole_stream(self, stream: Stream) -> None:
        stream.add(*range(1, 11))
        for start, whole in (("beginning", True), ("0-1", False), (None, True)):
            with self.read(stream.url, start=start) as consumer:
                assert not consumer.whole
                assert len(list(consumer)) == 10
                assert consumer.whole == whole
        stream.client.xdel(stream.key, stream.ids()[4])
        with self.read(stream.url) as consumer:
            assert len(list(consumer)) == 9
            assert not consumer.whole

    def test_being_overtaken_by_trimming(self, stream: Stream) -> None:
        stream.add(*range(1, 101))
        with self.read(stream.url, page_size=10) as consumer:
            items = [next(consumer) for _ in range(10)]
            stream.client.xtrim(stream.key, maxlen=60, approximate=False)
            items += list(consumer)
        assert [item.seq for item in items] == [*range(1, 11), *range(41, 101)]
        assert [item.seq for item in items if item.after_cut] == [41]
        assert consumer.stats().cuts == 1

    def test_an_entry_that_was_deleted_before_it_was_read(self, stream: Stream) -> None:
        stream.add(*range(1, 101))
        ids = stream.ids()
        with self.read(stream.url, page_size=10) as consumer:
            items = [next(consumer) for _ in range(10)]
            stream.client.xdel(stream.key, ids[14])
            items += list(consumer)
        assert [item.seq for item in items if item.after_cut] == [11]

    def test_trimming_what_was_read_is_no_cut(self, stream: Stream) -> None:
        stream.add(*range(1, 101))
        with self.read(stream.url, page_size=10) as consumer:
            seqs = []
            for item in consumer:
                seqs.append(item.seq)
                stream.client.xtrim(stream.key, maxlen=101 - item.seq, approximate=False)
        assert seqs == list(range(1, 101))
        assert consumer.stats().cuts == 0

    def test_a_user_that_may_not_ask(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis()
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@all", "-xinfo")
            stream = Stream(server, client, "app")
            stream.add(*range(1, 101))
            url = f"redis://reader:secret@127.0.0.1:{server.port}/0?stream=app"
            with self.read(url, page_size=10) as consumer:
                assert len(list(consumer)) == 100
                assert (consumer.whole, consumer.stats().cuts) == (False, 0)
            assert outcome(url, code=0)["total"]["events"] == 100

    def test_notes_in_a_group_do_not_stay_pending(self, stream: Stream) -> None:
        stream.add(1)
        stream.declare((2, 5))
        stream.close(5)
        with self.read(stream.url, group="g") as consumer:
            assert [event.event_type for event in consumer.events()] == ["t"]
            assert consumer.stats().notes == 2
        pending: Any = stream.client.xpending(stream.key, "g")
        assert pending["pending"] == 0

    def test_an_audit_of_a_stream_that_is_trimmed_at_its_heels(self, stream: Stream) -> None:
        """What an audit did not get to read is never called a loss."""
        stream.add(*range(1, 20_001))
        stop = threading.Event()

        def trim() -> None:
            length = 20_000
            while not stop.is_set() and length > 0:
                length -= 400
                stream.client.xtrim(stream.key, maxlen=length, approximate=False)

        trimmer = threading.Thread(target=trim)
        trimmer.start()
        try:
            done = audit(stream.url)
        finally:
            stop.set()
            trimmer.join()
        assert done.returncode in (0, 2)  # when all was gone there was nothing to judge
        assert "UNDECLARED" not in done.stdout
