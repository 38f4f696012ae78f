"""Which functions patterns mean, and how often one may be traced."""

from __future__ import annotations

import re
from fnmatch import translate
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.errors import ConfigurationError
from streamll.monitors.tracing.patterns import Patterns
from streamll.monitors.tracing.rate import LONGEST_PAUSE, Rate

names = st.lists(st.sampled_from(["pkg", "app", "a", "Cls", "run"]), min_size=1, max_size=4).map(".".join)


class TestPatterns:
    @pytest.mark.parametrize(
        ("patterns", "module", "function", "wanted"),
        [
            ("pkg.*", "pkg", "run", True),
            ("pkg.*", "pkg.sub.deep", "Class.run", True),
            ("pkg.*", "pkgs", "run", False),
            ("pkg", "pkg", "run", True),
            ("pkg", "pkg.sub", "run", False),
            ("pkg.run", "pkg", "run", True),
            ("pkg.sub.Class.*", "pkg.sub", "Class.run", True),
            ("pkg.mod:Class.run", "pkg.mod", "Class.run", True),
            ("pkg.mod:Class.run", "pkg.mod", "Class.walk", False),
            ("pkg.*:run", "pkg.mod", "run", True),
            ("pkg.*:run", "pkg", "run", False),
            ("*:handle_*", "any.where", "handle_it", True),
            ("pkg.*,!pkg.internal.*", "pkg.internal", "run", False),
            ("!pkg.internal.*,pkg.*", "pkg.internal.deep", "run", False),
            ("pkg.*,!pkg.internal.*", "pkg.internals", "run", True),
            ("pkg.*", "pkg", "Class.__init__", False),
            ("pkg:Class.__init__", "pkg", "Class.__init__", True),
            ("pkg:*.__call__", "pkg", "Class.__call__", True),
            ("*", "json", "dumps", False),
            ("json.*", "json.decoder", "JSONDecoder.decode", True),
            ("threading.*", "threading", "Thread.run", False),
            ("streamll.*", "streamll.api", "emit", False),
            ("*", "streamll.api", "emit", False),
        ],
    )
    def test_say_what_is_wanted(self, patterns: str, module: str, function: str, wanted: bool) -> None:
        assert Patterns(patterns.split(",")).want(module, function) is wanted

    @pytest.mark.parametrize("wrong", ["", "!pkg.*", "pkg:", ":run", "pkg mod", "pkg:a:b", "pkg.(x)"])
    def test_that_say_nothing_are_refused(self, wrong: str) -> None:
        with pytest.raises(ConfigurationError, match="auto tracer option patterns"):
            Patterns([wrong])

    @given(names, names, st.lists(names | names.map(lambda name: name + ".*") | st.just("a*"), min_size=1, max_size=3))
    def test_a_module_of_what_is_wanted_is_looked_at(self, module: str, function: str, texts: list[str]) -> None:
        patterns = Patterns(texts)
        expected = any(
            re.fullmatch(translate(text), name) for text in texts for name in (module, f"{module}.{function}")
        )
        assert patterns.want(module, function) is expected
        assert patterns.may_want(module) or not expected


class TestRate:
    def test_lets_so_many_through_in_a_second_and_then_pauses_ever_longer(self) -> None:
        rate = Rate(2)
        assert [rate.admits() for _ in range(4)] == [True, True, False, False]
        assert (rate.paused, rate.pauses, rate.calls) == (True, 1, 2)
        ends = []
        for second in range(300):
            if rate.tick(float(second)):
                ends.append(second)
                while rate.admits():
                    pass
        lengths = [after - before for before, after in pairwise(ends)]
        assert lengths[:5] == [3, 5, 9, 17, 33]  # a second until it is noticed, and 2, 4, 8, ... of pause
        assert max(lengths) <= LONGEST_PAUSE + 1

    def test_a_calm_second_makes_the_next_pause_short_again(self) -> None:
        rate = Rate(1)
        now = 0.0
        for hot in (True, True, False, True):
            while hot and rate.admits():
                pass
            now = 1000.0
            while rate.paused:
                rate.tick(now)
                now += 1
            rate.tick(now)
        assert now == 1002.0

    @given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 20))
    def test_never_lets_more_through_than_its_bound(self, wishes: list[int], bound: int) -> None:
        rate = Rate(bound)
        for second, wish in enumerate(wishes):
            assert sum(rate.admits() for _ in range(wish)) <= min(wish, bound)
            rate.tick(float(second))
        assert rate.calls <= bound * len(wishes)
