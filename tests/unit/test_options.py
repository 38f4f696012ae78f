"""The one table of options: every bad value is refused in words that help, every good one is read as what it is."""

from __future__ import annotations

import dataclasses
import math
import re
import threading
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.errors import ConfigurationError
from streamll.options import KIB, MIB, OptionSet, PipelineOptions, SinkOptions, option
from streamll.sinks.file import FileOptions
from streamll.sinks.memory import MemoryOptions
from streamll.sinks.rabbitmq_options import RabbitMQOptions
from streamll.sinks.redis_options import RedisOptions
from streamll.sinks.terminal import TerminalOptions

SETS: list[type[OptionSet]] = [
    SinkOptions,
    PipelineOptions,
    RedisOptions,
    RabbitMQOptions,
    FileOptions,
    TerminalOptions,
    MemoryOptions,
]
FIELDS = [(options, field) for options in SETS for field in dataclasses.fields(options)]

Field = dataclasses.Field[Any]


def named(value: object) -> str:
    return value.__name__ if isinstance(value, type) else getattr(value, "name", "")


def kind_of(field: Field) -> str:
    return str(field.type).split("|")[0].strip()


def wrong_values(field: Field) -> list[object]:
    """Values that an option must refuse."""
    meta, kind = field.metadata, kind_of(field)
    wrong: list[object] = [[], {}, object(), b"5", (1,), {1}]
    if "None" not in str(field.type):
        wrong.append(None)
    if kind == "bool":
        wrong += ["", "maybe", 2, 0.5, "yes please"]
    elif kind in ("int", "float"):
        wrong += ["many", "5 apples", True, math.nan, math.inf, "nan", "inf", "-inf"]
        if "None" not in str(field.type):
            wrong += ["", "none"]
        if meta["at_least"] is not None:
            wrong += [meta["at_least"] - 1, str(meta["at_least"] - 1)]
        if meta["above"] is not None:
            wrong += [meta["above"], meta["above"] - 1, str(meta["above"])]
        if meta["at_most"] is not None:
            wrong += [meta["at_most"] + 1, 10**400, "1" + "0" * 400, 10**5000]
        if kind == "int":
            wrong += [1.5, "1.5", "1e3", "1" + "0" * 5000]
    else:
        wrong += [5, 1.5, *([] if meta["spellings"] else [True])]
        if meta["choices"]:
            wrong += ["", "something else", meta["choices"][0].upper()]
    return wrong


class TestEveryOption:
    @pytest.mark.parametrize(("options", "field"), FIELDS, ids=named)
    def test_refuses_what_is_wrong_and_says_name_value_and_what_is_allowed(
        self, options: type[OptionSet], field: Field
    ) -> None:
        if kind_of(field) not in ("bool", "int", "float", "str"):
            pytest.skip("of a type of its own")
        allowed = next(row["allowed"] for row in options.table() if row["name"] == field.name)
        for value in wrong_values(field):
            with pytest.raises(ConfigurationError) as caught:
                options.from_mapping({field.name: value})
            message = str(caught.value)
            assert message.startswith(f"{options.owner}option {field.name}="), message
            assert f": must be {allowed}" in message
            if field.metadata["secret"]:
                assert "=***: " in message
            elif isinstance(value, (str, float, bool, type(None))):
                assert f"={repr(value)[:50]}" in message
            elif not isinstance(value, int):
                assert f"=a {type(value).__name__}: " in message
            assert len(message) < 500
            assert caught.value.__cause__ is None

    @pytest.mark.parametrize(("options", "field"), FIELDS, ids=named)
    def test_takes_its_default_and_the_word_for_it(self, options: type[OptionSet], field: Field) -> None:
        assert getattr(options(), field.name) == field.default
        if kind_of(field) in ("bool", "int", "float", "str") and field.default is not None:
            word = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
            read = getattr(options.from_mapping({field.name: word}), field.name)
            assert read == field.default
            assert type(read) is type(field.default)

    @pytest.mark.parametrize(("options", "field"), FIELDS, ids=named)
    def test_takes_its_bounds(self, options: type[OptionSet], field: Field) -> None:
        for bound in (field.metadata["at_least"], field.metadata["at_most"]):
            if bound is not None:
                assert getattr(options.from_mapping({field.name: bound}), field.name) == bound

    @pytest.mark.parametrize(("options", "field"), FIELDS, ids=named)
    def test_says_what_it_means(self, options: type[OptionSet], field: Field) -> None:
        doc = field.metadata["doc"]
        assert len(doc) > 10
        assert doc.endswith(".")

    @pytest.mark.parametrize(("options", "field"), FIELDS, ids=named)
    def test_a_duration_is_never_too_long_to_be_waited_for(self, options: type[OptionSet], field: Field) -> None:
        if field.metadata["unit"] == "s":
            assert field.metadata["at_most"] <= threading.TIMEOUT_MAX / 2

    @given(st.data())
    def test_any_value_is_taken_or_refused_in_one_way(self, data: st.DataObject) -> None:
        options, field = data.draw(st.sampled_from(FIELDS))
        value = data.draw(
            st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.binary(), st.lists(st.none()))
        )
        try:
            options.from_mapping({field.name: value})
        except ConfigurationError as error:
            assert str(error).startswith(options.owner)  # noqa: PT017  # it may also be taken


class TestRedaction:
    @pytest.mark.parametrize(
        ("given_", "expected"),
        [
            *((word, "keys") for word in (True, "true", "1", "yes", "On", "keys")),
            *((word, "off") for word in (False, "false", "0", "no", "OFF", "off")),
            ("full", "full"),
        ],
    )
    def test_is_said_in_the_words_there_were_before_too(self, given_: Any, expected: str) -> None:
        assert PipelineOptions(redact=given_).redact == expected
        assert PipelineOptions.from_mapping({"redact": given_}).redact == expected

    @pytest.mark.parametrize(
        ("rules", "message"),
        [
            ("emial=hash", "there is no kind 'emial'; there are: key, user_id, "),
            ("email=burn", "email may be redact, hash, drop, truncate or keep, not 'burn'"),
            ("email", "email may be redact, hash, drop, truncate or keep, not ''"),
        ],
    )
    def test_refuses_rules_that_mean_nothing(self, rules: str, message: str) -> None:
        with pytest.raises(ConfigurationError, match=f"pipeline option redact_rules: {re.escape(message)}"):
            PipelineOptions(redact="full", redact_rules=rules)

    def test_refuses_a_rule_for_what_is_not_looked_for(self) -> None:
        with pytest.raises(ConfigurationError, match="email is looked for with redact=full only"):
            PipelineOptions(redact_rules="key=hash, email=hash")

    def test_never_shows_the_key_of_pseudonyms(self) -> None:
        key = "open sesame, open sesame"
        options = PipelineOptions(pseudonym_key=key)
        assert options.pseudonym_key == key
        assert key not in repr(options)
        assert options.given() == {}
        assert key not in str(PipelineOptions.table())
        for wrong in (key[:15], [key]):
            with pytest.raises(ConfigurationError, match="pseudonym_key") as caught:
                PipelineOptions(pseudonym_key=wrong)  # type: ignore[arg-type]  # one of them
            assert key[:15] not in str(caught.value)


class TestReading:
    @pytest.mark.parametrize(
        ("name", "given_", "expected"),
        [
            ("buffer_size", "500", 500),
            ("buffer_size", 500.0, 500),
            ("flush_interval", "0.5", 0.5),
            ("flush_interval", 1, 1.0),
            ("circuit_breaker", "0", False),
            ("circuit_breaker", "No", False),
            ("circuit_breaker", "TRUE", True),
            ("circuit_breaker", "on", True),
            ("delivery_deadline", "none", None),
            ("delivery_deadline", "", None),
            ("delivery_deadline", None, None),
            ("delivery_deadline", "5", 5.0),
            ("encoding", "json", "json"),
        ],
    )
    def test_turns_words_and_numbers_into_the_options_type(self, name: str, given_: object, expected: object) -> None:
        value = getattr(SinkOptions.from_mapping({name: given_}), name)
        assert value == expected
        assert type(value) is type(expected)

    def test_a_set_is_frozen(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            SinkOptions().buffer_size = 5  # type: ignore[misc]  # that is the point

    def test_an_unknown_name_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(ConfigurationError) as caught:
            SinkOptions.from_mapping({"bufer_size": 5}, also=["stream"])
        message = str(caught.value)
        assert message.startswith("sink unknown option 'bufer_size'; did you mean buffer_size? the options are: ")
        for name in (*SinkOptions.names(), "stream"):
            assert name in message

    def test_a_value_of_another_type_is_not_asked_for_its_repr(self) -> None:
        class Secret:
            def __repr__(self) -> str:
                raise AssertionError("asked for its repr")

        with pytest.raises(ConfigurationError, match=r"buffer_size=a Secret: must be a whole number"):
            SinkOptions.from_mapping({"buffer_size": Secret()})

    def test_a_long_value_is_shown_by_its_start(self) -> None:
        with pytest.raises(ConfigurationError) as caught:
            SinkOptions.from_mapping({"encoding": "x" * 100_000})
        assert len(str(caught.value)) < 500


class TestEnvironment:
    def test_picks_out_what_is_its_own(self) -> None:
        environ = {"STREAMLL_BUFFER_SIZE": "500", "STREAMLL_SERVICE": "shop", "BUFFER_SIZE": "7", "STREAMLL_x": ""}
        assert SinkOptions.from_env(environ) == {"buffer_size": "500"}
        assert PipelineOptions.from_env(environ) == {"service": "shop"}
        assert SinkOptions.from_env({"APP_BUFFER_SIZE": "5"}, prefix="APP_") == {"buffer_size": "5"}
        assert SinkOptions.from_env({}) == {}

    def test_what_it_finds_is_validated_when_it_is_used(self) -> None:
        found = SinkOptions.from_env({"STREAMLL_BATCH_SIZE": "0"})
        with pytest.raises(ConfigurationError, match=r"option batch_size='0': must be a whole number \(events\)"):
            SinkOptions.from_mapping(found)

    @pytest.mark.parametrize("options", SETS, ids=named)
    def test_every_option_can_be_set_there(self, options: type[OptionSet]) -> None:
        environ = {f"STREAMLL_{name.upper()}": "x" for name in options.names()}
        assert set(options.from_env(environ)) == set(options.names())


class TestTable:
    def test_has_a_row_for_every_option_in_order(self) -> None:
        rows = SinkOptions.table()
        assert [row["name"] for row in rows] == list(SinkOptions.names())
        assert all(set(row) == {"name", "default", "allowed", "doc"} for row in rows)
        assert all(all(row.values()) for row in rows)

    def test_says_it_readably(self) -> None:
        rows = {
            row["name"]: (row["default"], row["allowed"]) for row in (*SinkOptions.table(), *PipelineOptions.table())
        }
        assert rows["buffer_size"] == ("10,000", "a whole number (events) at least 2 and at most 10000000")
        assert rows["buffer_bytes"] == ("64 MiB", "a whole number (bytes) at least 1024")
        assert rows["batch_bytes"] == ("1 MiB", "a whole number (bytes) at least 1")
        assert rows["flush_interval"] == ("0.1 s", "a number (s) at least 0 and at most 3600")
        assert rows["delivery_deadline"] == ("none", "a number (s) above 0 and at most 31536000, or none")
        assert rows["circuit_breaker"] == ("true", "true or false")
        assert rows["encoding"] == ("msgpack", "one of msgpack, json")
        assert rows["service"] == ("(empty)", "a string")
        assert rows["max_event_bytes"] == ("1 MiB", "a whole number (bytes) at least 1024 and at most 536870912")

    def test_the_defaults_are_those_of_the_architecture(self) -> None:
        options, pipeline = SinkOptions(), PipelineOptions()
        assert (options.buffer_size, options.buffer_bytes) == (10_000, 64 * MIB)
        assert (options.buffer_overflow_strategy, options.block_timeout) == ("drop_oldest", 1.0)
        assert (options.batch_size, options.batch_bytes, options.flush_interval) == (500, MIB, 0.1)
        assert pipeline.max_event_bytes == MIB
        assert options.delivery_deadline is None
        assert (options.failure_threshold, options.recovery_timeout, options.recovery_bound) == (3, 30.0, 300.0)
        assert (options.retry_base, options.retry_bound) == (0.1, 30.0)
        assert (options.connect_timeout, options.send_timeout) == (5.0, 10.0)
        assert (options.flush_timeout, options.stop_timeout, options.exit_timeout) == (5.0, 5.0, 2.0)


@dataclasses.dataclass(frozen=True)
class OwnOptions(OptionSet):
    """As somebody else's sink declares them."""

    owner: ClassVar[str] = "own "

    name: str = option("x", "A name.")
    size: int = option(5, "A size.", at_least=1, at_most=2 * MIB, unit="bytes")
    ratio: float | None = option(None, "A ratio.")
    plain: float = option(0.25, "A number.")
    callback: Any = option(None, "A function.")  # noqa: RUF009  # ruff knows `option` by the other types only

    def check(self) -> None:
        if self.name == "y" and self.size > 5:
            raise ConfigurationError("own option size: at most 5 when name is y")


class TestDeclaring:
    def test_combinations_are_checked(self) -> None:
        assert OwnOptions(name="y").size == 5
        with pytest.raises(ConfigurationError, match="at most 5 when name is y"):
            OwnOptions(name="y", size=6)

    def test_other_types_are_left_to_their_owner(self) -> None:
        assert OwnOptions(callback=len).callback is len

    def test_rows_of_other_bounds(self) -> None:
        rows = {row["name"]: (row["default"], row["allowed"]) for row in OwnOptions.table()}
        assert rows["ratio"] == ("none", "a number or none")
        assert rows["size"] == ("5", f"a whole number (bytes) at least 1 and at most {2 * MIB}")
        assert rows["plain"] == ("0.25", "a number")

    def test_types_may_be_objects_instead_of_names(self) -> None:
        """As they are in a module without `from __future__ import annotations`."""
        made: Any = dataclasses.make_dataclass(
            "Made",
            [("size", int, option(5, "A size.", at_least=1)), ("on", bool, option(True, "A switch."))],
            bases=(OptionSet,),
            frozen=True,
        )
        assert made.from_mapping({"size": "7", "on": "no"}) == made(size=7, on=False)
        with pytest.raises(ConfigurationError, match="option size=0: must be a whole number at least 1"):
            made(size=0)

    def test_a_duration_has_a_bound_even_when_none_is_declared(self) -> None:
        made = dataclasses.make_dataclass(
            "Made", [("pause", "float", option(1.0, "A pause.", unit="s"))], bases=(OptionSet,), frozen=True
        )
        with pytest.raises(ConfigurationError, match=r"must be a number \(s\) at most 31536000"):
            made(pause=1e18)


def test_sizes() -> None:
    assert (KIB, MIB) == (1 << 10, 1 << 20)
