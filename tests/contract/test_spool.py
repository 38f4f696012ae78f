"""What was accepted outlives its process: every way to die, every sink that a process can share, brokers alive and away.

The processes are real (puppet.py), and so are the brokers. What the dead leave is delivered by a sink of this process.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamll.codec import decode
from streamll.models import Record
from streamll.options import KIB, MIB
from streamll.runtime import adoption
from streamll.runtime.segment import HEADER_BYTES
from streamll.sinks.base import Sink
from tests.contract.conftest import QUICK, emit, ids_at, make_destination, make_event, make_outage, marked, told
from tests.contract.destinations import Outage
from tests.contract.puppet import DEATHS, EXITED, KILLED, ROOT, SEGFAULT, Puppet
from tests.fixtures.waiting import PATIENCE, wait_until

SHARED = ("file", "sqlite", "redis", "redis-framed", "rabbitmq")
"""The destinations that two processes can share."""

AWAY = ("file-locked", "sqlite-locked", "redis-refused", "redis-frozen", "rabbitmq-refused", "rabbitmq-stalled")

REFUSES_DOUBLES = frozenset({"sqlite", "redis"})
"""Those at which an event is once, whoever brings it how often."""

SEGMENT = 64 * KIB


class Scene:
    """A destination, away or not, a spool, and the processes and sinks that share both."""

    def __init__(self, outage: Outage, spool: Path) -> None:
        self.outage = outage
        self.destination = outage.destination
        self.spool = spool
        self._puppets: list[Puppet] = []
        self._sinks: list[Sink] = []

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        mine = {"durability": "process", "spool_dir": str(self.spool), "segment_bytes": SEGMENT, "spool_bytes": 4 * MIB}
        return {**QUICK, **mine, **options}

    def puppet(self, **options: Any) -> Puppet:
        """A process with a sink."""
        puppet = Puppet(self.destination.url(), **self._options(options))
        self._puppets.append(puppet)
        return puppet

    def sink(self, **options: Any) -> Sink:
        """A sink of this process."""
        sink = self.destination.sink(**self._options(options))
        self._sinks.append(sink)
        return sink

    def files(self) -> list[Path]:
        """Those in the spool."""
        return sorted(Path(folder, name) for folder, _, names in os.walk(self.spool) for name in names)

    def producers(self) -> list[str]:
        """The folders of producers in the spool."""
        return sorted(path.name for path in self.spool.glob("*/*"))

    def deliver_the_dead(self, *producers: str) -> Sink:
        """Have a sink deliver what they have left, until nothing is left of them; its numbers must add up all the while."""
        sink = self.sink()
        sink.start()
        self.wait_for(sink, *producers)
        return sink

    def wait_for(self, sink: Sink, *producers: str) -> None:
        def done() -> bool:
            adopted = sink.stats().adopted
            assert all(one.balanced for one in adopted), adopted
            # Who is killed just before it removes the folder of another leaves it empty, to be removed much later.
            return not set(producers) & {file.parent.name for file in self.files()}

        assert wait_until(done), (self.files(), sink.stats())

    def numbers(self, producer: str) -> list[int]:
        """What is there of a producer, as its events have it in their data: in order, and once where that is promised."""
        there = [stored for stored in self.destination.stored() if stored.producer == producer]
        if self.destination.name in REFUSES_DOUBLES:
            seqs = [stored.seq for stored in there]
            assert seqs == sorted(set(seqs)), "a double, or out of order"
        there = list({stored.seq: stored for stored in reversed(there)}.values())[::-1]
        if self.destination.name not in REFUSES_DOUBLES:
            first_seen = list(dict.fromkeys(s.seq for s in self.destination.stored() if s.producer == producer))
            assert first_seen == sorted(first_seen), "out of order"
            there.sort(key=lambda stored: stored.seq)
        return [decode(stored.payload).data["n"] for stored in there]

    def close(self) -> None:
        for puppet in self._puppets:
            puppet.close()
        self.outage.end()
        for sink in self._sinks:
            sink.stop(0)
        self.destination.close()


def nothing() -> None:
    """An outage that is none."""


def make_scene(name: str, request: pytest.FixtureRequest, folder: Path) -> Scene:
    if "-" in name:
        return Scene(make_outage(name, request, folder), folder / "spool")
    return Scene(Outage(make_destination(name, request, folder), nothing, nothing), folder / "spool")


@pytest.fixture(params=marked(SHARED + AWAY))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """Each destination that processes share, alive, and away in a quick and a silent way."""
    made = make_scene(request.param, request, tmp_path)
    yield made
    made.close()


@pytest.fixture(params=marked(SHARED))
def alive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """Each destination that processes share, alive."""
    made = make_scene(request.param, request, tmp_path)
    yield made
    made.close()


@pytest.fixture(params=marked(("file-locked", "sqlite-locked", "redis-refused", "rabbitmq-refused")))
def away(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """Each destination that processes share, with a quick way to hurt it."""
    made = make_scene(request.param, request, tmp_path)
    yield made
    made.close()


@pytest.fixture(params=marked(("redis-refused",)))
def redis_away(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """A Redis that can be hurt: for what is the same for all."""
    made = make_scene(request.param, request, tmp_path)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for the dead all the time."""
    monkeypatch.setattr(adoption, "LOOK_AGAIN", 0.05)


def numbers(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


class TestDeath:
    @pytest.mark.parametrize("how", DEATHS)
    def test_everything_that_was_accepted_arrives(self, scene: Scene, how: str) -> None:
        scene.outage.begin()
        puppet = scene.puppet(batch_size=10)
        accepted = puppet.emit(100)
        puppet.die(how)
        assert accepted == numbers(1, 100)
        scene.outage.end()
        scene.deliver_the_dead(puppet.producer)
        assert scene.numbers(puppet.producer) == accepted
        assert scene.files() == []

    @pytest.mark.parametrize("how", [KILLED, SEGFAULT])
    def test_with_durability_disk_too_which_syncs(self, away: Scene, how: str) -> None:
        away.outage.begin()
        puppet = away.puppet(durability="disk", sync_interval=0.01)
        assert puppet.emit(100) == numbers(1, 100)
        assert wait_until(lambda: not puppet.stats()["unsynced"])
        puppet.die(how)
        away.outage.end()
        away.deliver_the_dead(puppet.producer)
        assert away.numbers(puppet.producer) == numbers(1, 100)

    def test_at_any_moment(self, alive: Scene) -> None:
        """In the midst of emitting and sending."""
        rng = random.Random(4)
        accepted: dict[str, list[int]] = {}
        for _ in range(8 if alive.destination.name == "redis" else 3):
            puppet = alive.puppet(batch_size=20, flush_interval=0.0, spool_bytes=64 * MIB)
            puppet.order("emit", 1_000_000, {})
            first = puppet.hear_a_word()
            time.sleep(rng.uniform(0.0, 0.08))
            accepted[puppet.producer] = [first, *puppet.die()]
        alive.deliver_the_dead(*accepted)
        for producer, said in accepted.items():
            there = alive.numbers(producer)
            assert said == numbers(1, len(said))
            assert there == numbers(1, len(there))
            assert len(there) in (len(said), len(said) + 1)  # of the last one it may have had no time to speak
        assert any(len(said) > 100 for said in accepted.values())
        assert alive.files() == []

    def test_what_had_found_its_fate_is_not_touched_again(self, away: Scene) -> None:
        puppet = away.puppet(buffer_size=20)
        puppet.emit(10)
        assert puppet.tell("flush", PATIENCE) == [True]
        there = len(away.destination.stored())
        away.outage.begin()
        puppet.emit(50)
        stats = puppet.stats()
        assert (stats["delivered"], stats["dropped"]) == (10, {"overflow": 30})
        puppet.die()
        away.outage.end()
        sink = away.deliver_the_dead(puppet.producer)
        assert there == 10
        (adopted,) = sink.stats().adopted
        assert (adopted.accepted, adopted.delivered) == (20, 20)
        left = away.numbers(puppet.producer)
        assert left[:10] == numbers(1, 10)
        assert len(left) == 30
        assert left[-1] == 60

    def test_what_gave_way_is_declared_by_whoever_delivers_the_rest(self, away: Scene) -> None:
        away.outage.begin()
        puppet = away.puppet(buffer_size=20)
        puppet.emit(100)
        puppet.die()
        away.outage.end()
        away.deliver_the_dead(puppet.producer)
        left = set(away.numbers(puppet.producer))
        assert len(left) == 20
        said = told(away.destination, puppet.producer)
        declared = {n for first, last in said.gaps for n in range(first, last + 1)}
        assert declared == set(numbers(1, 100)) - left
        assert said.reasons == {"dropped_before_crash": 80}

    # Python 3.12 warns of forking a process that has threads.
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_poison_that_died_becomes_a_dead_letter(self, away: Scene) -> None:
        away.outage.begin()
        pid = os.fork()
        if pid == 0:  # the puppet has no string for it
            sink = away.sink()
            record = sink.pipeline.encode(make_event(1), sink.content_type)
            poison = Record(**{name: getattr(record, name) for name in record.__struct_fields__} | {"poison": "bad"})
            os._exit(0 if sink.handle_record(poison) and sink.handle_event(make_event(2)) else 1)
        assert os.waitpid(pid, 0)[1] == 0
        (producer,) = away.producers()
        away.outage.end()
        sink = away.deliver_the_dead(producer)
        (adopted,) = sink.stats().adopted
        assert (adopted.delivered, adopted.dead_lettered) == (1, 1)
        assert [(letter.seq, letter.reason) for letter in away.destination.dead_letters()] == [(1, "bad")]
        assert away.numbers(producer) == [2]

    def test_what_is_damaged_is_declared_and_the_rest_delivered(self, away: Scene) -> None:
        away.outage.begin()
        puppet = away.puppet()
        puppet.emit(50)
        puppet.die()
        (path,) = away.files()
        data = path.read_bytes()
        for n in (10, 11, 30):
            at = data.index(f"{puppet.producer}-{n}".encode())
            with path.open("r+b") as file:
                file.seek(at)
                file.write(b"\xff")
        away.outage.end()
        away.deliver_the_dead(puppet.producer)
        assert away.numbers(puppet.producer) == [n for n in numbers(1, 50) if n not in (10, 11, 30)]
        said = told(away.destination, puppet.producer)
        assert (said.gaps, said.reasons) == (((10, 11), (30, 30)), {"lost_in_crash": 3})


class TestSpill:
    def test_what_finds_no_room_waits_on_disk_and_keeps_its_order(self, away: Scene) -> None:
        sink = away.sink(durability="memory", buffer_overflow_strategy="spill", buffer_size=20, batch_size=10)
        away.outage.begin()
        ids = emit(sink, 1000)
        stats = sink.stats()
        assert (stats.accepted, stats.refused, stats.dropped) == (1000, {}, {})
        assert (stats.buffered + stats.in_flight, stats.spooled) == (20, 980)
        assert stats.bytes_held < 20 * 2000
        assert not sink.flush(0.05)
        away.outage.end()
        ids += emit(sink, 50)  # which follow through the disk
        assert sink.flush(PATIENCE)
        assert sink.stats().spooled == 0
        ids += emit(sink, 10)
        assert sink.flush(PATIENCE)
        assert ids_at(away.destination) == ids
        stats = sink.stop(PATIENCE)
        assert (stats.delivered, stats.spooled, stats.dropped, stats.unprotected) == (1060, 0, {}, 0)
        assert away.files() == []

    @pytest.mark.parametrize("durability", ["memory", "process"])
    def test_a_stop_leaves_it_and_the_next_delivers_all_in_order(self, away: Scene, durability: str) -> None:
        away.outage.begin()
        puppet = away.puppet(durability=durability, buffer_overflow_strategy="spill", buffer_size=20)
        assert puppet.emit(300) == numbers(1, 300)
        (stats,) = puppet.tell("stop", 0.1)
        assert (stats["spooled"], stats["dropped"], stats["balanced"]) == (300, {}, True)
        puppet.order("exited")
        puppet.end(DEATHS[EXITED])
        away.outage.end()
        away.deliver_the_dead(puppet.producer)
        assert away.numbers(puppet.producer) == numbers(1, 300)
        assert away.files() == []

    def test_a_stop_leaves_what_was_durable_too(self, away: Scene) -> None:
        away.outage.begin()
        first = away.sink()
        ids = emit(first, 30)
        stats = first.stop(0.1)
        assert (stats.spooled, stats.dropped, stats.in_flight + stats.buffered) == (30, {}, 0)
        away.outage.end()
        away.deliver_the_dead(first.producer)
        assert ids_at(away.destination) == ids

    def test_a_full_spool_refuses_and_drains(self, redis_away: Scene) -> None:
        redis_away.outage.begin()
        sink = redis_away.sink(
            durability="memory", buffer_overflow_strategy="spill", buffer_size=20, spool_bytes=640 * KIB
        )
        counts: dict[str, int] = {}
        ids = []
        for priority in ("debug", "normal", "critical"):
            event = make_event(fill="x" * 500)
            event.priority = priority
            while sink.handle_event(event):
                ids.append(event.event_id)
                event = make_event(fill="x" * 500)
                event.priority = priority
                counts[priority] = counts.get(priority, 0) + 1
        assert min(counts.values()) > 10
        assert len(counts) == 3
        stats = sink.stats()
        assert stats.refused == {"spool_full": 3}
        assert stats.spool_bytes <= 640 * KIB + SEGMENT  # the worker may have made one at the same time
        redis_away.outage.end()
        assert sink.flush(PATIENCE)
        assert ids_at(redis_away.destination) == ids
        assert sink.handle_event(make_event())
        assert sink.stop(PATIENCE).delivered == len(ids) + 1
        assert redis_away.files() == []

    def test_dying_with_events_in_memory_loses_those_only(self, redis_away: Scene) -> None:
        redis_away.outage.begin()
        puppet = redis_away.puppet(durability="memory", buffer_overflow_strategy="spill", buffer_size=20)
        puppet.emit(300)
        puppet.die()
        redis_away.outage.end()
        redis_away.deliver_the_dead(puppet.producer)
        assert redis_away.numbers(puppet.producer) == numbers(21, 300)


ENDS = """
import sys
from streamll.models import StreamllEvent
from tests.contract.puppet import make

options = dict(durability="process", spool_dir=sys.argv[2], flush_interval=0.01, exit_timeout=0.3)
sink = make(sys.argv[1], options)
print(sink.producer)
for n in range(1, 51):
    assert sink.handle_event(StreamllEvent(event_type="test", data={"n": n}))
"""


class TestTheEndOfAProgram:
    def test_leaves_what_could_not_be_sent_and_says_so_in_a_line(self, away: Scene) -> None:
        away.outage.begin()
        env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        program = [sys.executable, "-c", ENDS, away.destination.url(), str(away.spool)]
        done = subprocess.run(program, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        (said,) = [line for line in done.stderr.splitlines() if "stopped before" in line]
        assert "50 spooled for the next process" in said
        assert "Traceback" not in done.stderr
        away.outage.end()
        producer = done.stdout.strip()
        away.deliver_the_dead(producer)
        assert away.numbers(producer) == numbers(1, 50)
        assert away.files() == []

    def test_does_not_wait_for_what_the_dead_have_left(self, away: Scene) -> None:
        away.outage.begin()
        dead = away.puppet()
        dead.emit(50)
        dead.die()
        heir = away.puppet(exit_timeout=0.2)
        heir.tell("start")
        assert wait_until(lambda: heir.stats()["adopted"])
        began = time.monotonic()
        heir.order("end")
        heir.end()
        assert time.monotonic() - began < 10
        assert dead.producer in away.producers()
        away.outage.end()
        away.deliver_the_dead(dead.producer)
        assert away.numbers(dead.producer) == numbers(1, 50)


class TestCompany:
    def test_two_processes_that_want_the_same_share_it(self, away: Scene) -> None:
        away.outage.begin()
        dead = [away.puppet() for _ in range(4)]
        for puppet in dead:
            puppet.emit(200)
            puppet.die()
        away.outage.end()
        heirs = [away.puppet(batch_size=10) for _ in range(2)]
        for heir in heirs:
            heir.order("start")
        for heir in heirs:
            heir.hear()
        assert wait_until(lambda: not set(away.producers()) & {puppet.producer for puppet in dead})
        shares = [heir.stats()["adopted"] for heir in heirs]
        assert sorted(one[0] for share in shares for one in share) == sorted(puppet.producer for puppet in dead)
        assert all(
            (accepted, delivered, spooled) == (200, 200, 0)
            for share in shares
            for _, accepted, delivered, spooled in share
        )
        for puppet in dead:
            assert away.numbers(puppet.producer) == numbers(1, 200)
        assert len(away.destination.stored()) == 800  # no double anywhere: nobody delivers what another has

    def test_an_heir_that_dies_leaves_the_rest_to_the_next(self, away: Scene) -> None:
        away.outage.begin()
        puppet = away.puppet(buffer_size=20_000, spool_bytes=16 * MIB)
        count = 5000 if away.destination.name in REFUSES_DOUBLES else 1000
        puppet.emit(count)
        puppet.die()
        away.outage.end()
        heir = away.puppet(batch_size=5, batch_growth=1)
        heir.tell("start")
        assert wait_until(lambda: any(one[2] for one in heir.stats()["adopted"]), interval=0)
        heir.die()
        sink = away.deliver_the_dead(puppet.producer)
        (adopted,) = sink.stats().adopted
        assert 0 < adopted.accepted < count  # what the heir had delivered is not touched again
        assert away.numbers(puppet.producer) == numbers(1, count)

    # Not SQLite: a process that is frozen while it looks whether it may write keeps all others from writing.
    @pytest.mark.parametrize("away", marked(("file-locked", "redis-refused", "rabbitmq-refused")), indirect=True)
    def test_a_living_process_is_left_alone_however_still_it_is(self, away: Scene) -> None:
        away.outage.begin()
        living = away.puppet()
        living.emit(20)
        dead = away.puppet()
        dead.emit(20)
        living.freeze()  # before there is something to adopt
        dead.die()
        away.outage.end()
        sink = away.deliver_the_dead(dead.producer)
        time.sleep(0.3)  # several looks
        assert [one.producer for one in sink.stats().adopted] == [dead.producer]
        assert away.producers() == [living.producer]
        living.process.kill()  # frozen as it is
        away.wait_for(sink, living.producer)
        living.end(DEATHS[KILLED])
        assert away.numbers(living.producer) == numbers(1, 20)

    def test_own_events_and_those_of_the_dead_go_side_by_side(self, away: Scene) -> None:
        away.outage.begin()
        dead = [away.puppet() for _ in range(3)]
        for puppet in dead:
            puppet.emit(100)
            puppet.die()
        away.outage.end()
        sink = away.sink(batch_size=10)
        ids = emit(sink, 100)
        assert sink.flush(PATIENCE)
        away.wait_for(sink, *[puppet.producer for puppet in dead])
        own = [stored.event_id for stored in away.destination.stored() if stored.producer == sink.producer]
        assert list(dict.fromkeys(own)) == ids
        for puppet in dead:
            assert away.numbers(puppet.producer) == numbers(1, 100)
        assert sink.stop(PATIENCE).delivered == 100
        assert away.files() == []

    def test_a_fork_inherits_nothing_and_leaves_its_own(self, away: Scene) -> None:
        away.outage.begin()
        parent = away.puppet()
        parent.emit(10)
        child, *accepted = parent.tell("fork", 5, {})
        assert child.startswith(parent.producer[:16] + ".")
        assert accepted == numbers(1, 5)
        parent.emit(10)
        assert parent.stats()["unprotected"] == 0
        away.outage.end()  # the child is dead by now, and its parent is not: which of the two adopts it is open
        sink = away.deliver_the_dead(child)
        assert parent.tell("flush", PATIENCE) == [True]
        assert parent.producer in away.producers()
        (stats,) = parent.tell("stop", PATIENCE)
        assert (stats["delivered"], stats["dropped"], stats["balanced"]) == (20, {}, True)
        assert parent.producer not in [one.producer for one in sink.stats().adopted]
        assert away.numbers(parent.producer) == numbers(1, 20)
        assert away.numbers(child) == numbers(1, 5)
        assert away.files() == []


class TestADiskThatTakesNothing:
    def test_events_are_delivered_all_the_same_and_it_is_said_once(
        self, alive: Scene, caplog: pytest.LogCaptureFixture
    ) -> None:
        (alive.spool.parent / "file").write_text("in the way")
        alive.spool = alive.spool.parent / "file" / "spool"
        sink = alive.sink(name="said")
        ids = emit(sink, 50)
        assert sink.flush(PATIENCE)
        ids += emit(sink, 50)
        assert sink.flush(PATIENCE)
        stats = sink.stats()
        assert (stats.delivered, stats.unprotected) == (100, 100)
        assert "Not a directory" in stats.spool_trouble
        assert ids_at(alive.destination) == ids
        said = [record.getMessage() for record in caplog.records if "in memory only" in record.getMessage()]
        assert len(said) == 1
        sink.stop(PATIENCE)

    @pytest.mark.parametrize("place", ["/proc/streamll/spool", "/dev/null/spool"])
    def test_in_places_where_no_folder_can_be(self, redis_away: Scene, place: str) -> None:
        redis_away.spool = Path(place)
        sink = redis_away.sink()
        ids = emit(sink, 10)
        assert sink.stop(PATIENCE).delivered == 10
        assert sink.stats().unprotected == 10
        assert ids_at(redis_away.destination) == ids

    def test_it_recovers_when_that_is_mended(self, away: Scene, caplog: pytest.LogCaptureFixture) -> None:
        away.spool.write_text("in the way")
        away.outage.begin()
        sink = away.sink()
        first = emit(sink, 10)
        assert sink.stats().unprotected == 10
        assert wait_until(lambda: any("in memory only" in record.getMessage() for record in caplog.records))
        away.spool.unlink()
        extra: list[str] = []

        def recovered() -> bool:
            before = sink.stats().unprotected
            extra.extend(emit(sink, 1))
            return sink.stats().unprotected == before

        assert wait_until(recovered, interval=0.1)
        assert wait_until(lambda: any("takes events again" in record.getMessage() for record in caplog.records))
        assert sink.stats().spool_trouble == ""
        away.outage.end()
        assert sink.flush(PATIENCE)
        assert ids_at(away.destination) == first + extra
        sink.stop(PATIENCE)
        assert away.files() == []

    def test_a_spool_that_somebody_deletes_is_made_anew(self, redis_away: Scene) -> None:
        redis_away.outage.begin()
        puppet = redis_away.puppet()
        puppet.emit(10)
        shutil.rmtree(redis_away.spool)
        count = 10
        while puppet.producer not in redis_away.producers():
            count += len(puppet.emit(1))
            time.sleep(0.05)
            assert count < 600
        assert puppet.emit(10) == numbers(count + 1, count + 10)
        puppet.die()
        redis_away.outage.end()
        redis_away.deliver_the_dead(puppet.producer)
        assert redis_away.numbers(puppet.producer)[-10:] == numbers(count + 1, count + 10)

    def test_a_full_disk_kills_nobody(self, redis_away: Scene) -> None:
        redis_away.outage.begin()
        puppet = redis_away.puppet()
        puppet.emit(10)
        puppet.tell("limit", 1000)  # no file may become longer
        assert puppet.emit(2000, tags=["x" * 100]) == numbers(11, 2010)
        stats = puppet.stats()
        assert 0 < stats["unprotected"] < 2000
        assert "File too large" in stats["spool_trouble"]
        puppet.tell("limit", 1 << 30)
        count = 2010 + self.emit_until_it_is_mended(puppet)
        unprotected = puppet.stats()["unprotected"]
        assert puppet.emit(10) == numbers(count + 1, count + 10)
        assert puppet.stats()["unprotected"] == unprotected
        puppet.die()
        redis_away.outage.end()
        redis_away.deliver_the_dead(puppet.producer)
        there = redis_away.numbers(puppet.producer)
        assert (there[:10], there[-10:]) == (numbers(1, 10), numbers(count + 1, count + 10))
        assert len(there) == count + 10 - unprotected
        assert told(redis_away.destination, puppet.producer).reasons == {"lost_in_crash": unprotected}

    def emit_until_it_is_mended(self, puppet: Puppet) -> int:
        """Emit one event after the other until one is on disk; returns how many."""
        for n in range(1, 300):
            before = puppet.stats()["unprotected"]
            puppet.emit(1)
            if puppet.stats()["unprotected"] == before:
                return n
            time.sleep(0.1)
        raise AssertionError("it is not mended")

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A file system of half a megabyte."""
        place = tmp_path / "disk"
        place.mkdir()
        mount = shutil.which("mount")
        command = [str(mount), "-t", "tmpfs", "-o", "size=512k", "streamll-test", str(place)]
        if mount is None or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("this user may not mount a file system")
        yield place
        subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)

    def test_a_file_system_that_is_full(self, redis_away: Scene, small_disk: Path) -> None:
        redis_away.spool = small_disk / "spool"
        (small_disk / "ballast").write_bytes(bytes(300 * KIB))
        redis_away.outage.begin()
        puppet = redis_away.puppet()
        assert len(puppet.emit(3000)) == 3000
        assert 0 < puppet.stats()["unprotected"] < 3000
        count = 3001
        while "No space left" not in puppet.stats()["spool_trouble"]:  # another attempt says it
            puppet.emit(1)
            count += 1
            time.sleep(0.1)
            assert count < 3300
        (small_disk / "ballast").unlink()
        count += self.emit_until_it_is_mended(puppet) - 1
        unprotected = puppet.stats()["unprotected"]
        puppet.die()
        redis_away.outage.end()
        redis_away.deliver_the_dead(puppet.producer)
        there = redis_away.numbers(puppet.producer)
        assert there == sorted(set(there))
        assert len(there) == count - unprotected
        assert there[-1] == count
        assert redis_away.files() == []


def test_the_files_are_this_users_alone(alive: Scene) -> None:
    sink = alive.sink()
    emit(sink, 1)
    before = os.umask(0)
    try:
        emit(sink, 1)
        folders = [path for path in alive.spool.rglob("*") if path.is_dir()]
        assert len(folders) == 2
        assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
        assert {path.stat().st_mode & 0o777 for path in alive.files()} == {0o600}
    finally:
        os.umask(before)
    for secret in alive.destination.secrets:
        assert not any(secret.encode() in path.read_bytes()[:HEADER_BYTES] for path in alive.files())
    sink.stop(PATIENCE)
