"""A URL finds its sink, and a bad one says why without showing a secret."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamll import registry
from streamll.errors import ConfigurationError
from streamll.registry import BUILT_IN, known_schemes, make_sink, sink_class
from streamll.sinks.memory import MemorySink

ROOT = Path(__file__).resolve().parents[2]

Install = Callable[..., None]


@pytest.fixture(autouse=True)
def _fresh_caches() -> Iterator[None]:
    registry.sink_class.cache_clear()
    registry._entry_points.cache_clear()
    yield
    registry.sink_class.cache_clear()
    registry._entry_points.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution on the path, as pip would."""

    def put(distribution: str, points: dict[str, str], **modules: str) -> None:
        folder = tmp_path / distribution
        info = folder / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[streamll.sinks]\n{lines}")
        for module, source in modules.items():
            (folder / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(folder))

    return put


GOOD = """
from streamll.sinks.memory import MemorySink

class TapeSink(MemorySink):
    scheme = "tape"
"""


def test_the_table_here_and_the_entry_points_of_the_package_are_the_same() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition('[project.entry-points."streamll.sinks"]')[2].partition("\n[")[0]
    assert dict(re.findall(r'^"(.+)" = "(.+)"$', section, re.MULTILINE)) == BUILT_IN


def test_a_url_makes_the_sink_of_its_scheme() -> None:
    sink = make_sink("memory://box?max_events=5", buffer_size=7)
    assert isinstance(sink, MemorySink)
    assert (sink.name, sink.options.buffer_size) == ("box", 7)


def test_a_scheme_is_read_in_any_case_and_found_again() -> None:
    assert sink_class("MEMORY") is MemorySink
    assert isinstance(make_sink(" Memory://box "), MemorySink)


def test_a_third_party_adds_a_scheme(install: Install) -> None:
    install("tapes", {"tape": "tapes_sink:TapeSink"}, tapes_sink=GOOD)
    sink = make_sink("tape://one")
    assert type(sink).__name__ == "TapeSink"
    assert isinstance(sink, MemorySink)
    assert "tape" in known_schemes()


def test_a_third_party_cannot_take_a_scheme_of_ours(install: Install) -> None:
    install("thief", {"memory": "thief_sink:TapeSink"}, thief_sink=GOOD)
    assert sink_class("memory") is MemorySink


def test_a_distribution_that_is_found_twice_counts_once(install: Install) -> None:
    install("tapes", {"tape": "tapes_sink2:TapeSink"}, tapes_sink2=GOOD)
    install("tapes-again", {"tape": "tapes_sink2:TapeSink"})
    assert sink_class("tape").__name__ == "TapeSink"


@pytest.mark.parametrize(
    ("source", "value", "said"),
    [
        ("raise RuntimeError('no licence')", "broken_a:TapeSink", "cannot be loaded: RuntimeError: no licence"),
        ("import not_there_at_all", "broken_b:TapeSink", "cannot be loaded: ModuleNotFoundError"),
        ("", "broken_c:TapeSink", "cannot be loaded: AttributeError"),
        ("TapeSink = dict", "broken_d:TapeSink", "is not a subclass of streamll.sinks.base.Sink"),
        ("TapeSink = 5", "broken_e:TapeSink", "is not a subclass of streamll.sinks.base.Sink"),
    ],
)
def test_a_broken_entry_point_names_its_distribution(install: Install, source: str, value: str, said: str) -> None:
    install("tapes", {"tape": value}, **{value.partition(":")[0]: source})
    with pytest.raises(ConfigurationError, match=re.escape(said)) as caught:
        make_sink("tape://user:s3cret@host")
    assert "tapes" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_two_distributions_with_one_scheme_are_an_error(install: Install) -> None:
    install("tapes", {"tape": "tapes_a:TapeSink"}, tapes_a=GOOD)
    install("cassettes", {"tape": "tapes_b:TapeSink"}, tapes_b=GOOD)
    with pytest.raises(ConfigurationError, match=r"claimed by .*cassettes.* and .*tapes"):
        sink_class("tape")


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("reddis://user:s3cret@localhost", "redis://"),
        ("rabbitmq://user:s3cret@localhost", "amqp://"),
        ("stdout://s3cret", "terminal://"),
        ("amqpss://user:s3cret@localhost", "amqps://"),
    ],
)
def test_an_unknown_scheme_lists_the_known_ones_and_guesses(url: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown; did you mean") as caught:
        make_sink(url)
    assert f"did you mean {meant}?" in str(caught.value)
    assert all(scheme in str(caught.value) for scheme in BUILT_IN)
    assert "s3cret" not in str(caught.value)


def test_a_scheme_that_is_like_none_gets_no_guess() -> None:
    with pytest.raises(ConfigurationError, match=r"'zzzzzz': unknown; the schemes are"):
        make_sink("zzzzzz://user:s3cret@host")


@pytest.mark.parametrize(
    "url", ["user:s3cret@localhost:6379", "s3cret", "s3cret:6379", "", "//s3cret@host", "s3cret@x://"]
)
def test_what_has_no_scheme_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="must begin with a scheme") as caught:
        make_sink(url)
    assert "s3cret" not in str(caught.value)


def test_what_is_no_string_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be a string, not a int"):
        make_sink(5)  # type: ignore[arg-type]  # what untyped code does


def test_unknown_options_and_twice_given_ones_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"memory URL: unknown option 'colour'; the options are: .*max_events"):
        make_sink("memory://?colour=red")
    with pytest.raises(ConfigurationError, match="max_events is given twice"):
        make_sink("memory://?max_events=1&max_events=2")
    with pytest.raises(ConfigurationError, match="'colour'"):
        make_sink("memory://", colour="red")


def test_no_client_library_is_imported_for_a_sink_that_does_not_run() -> None:
    code = (
        "import sys; from streamll.registry import known_schemes, sink_class\n"
        "for scheme in known_schemes(): sink_class(scheme)\n"
        "print([name for name in ('redis', 'pika', 'tenacity', 'msgpack') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
