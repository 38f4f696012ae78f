"""Every option: its name, default, bounds and meaning. One table, from which validation, the environment and the docs come.

What belongs here: options that every sink has, those of the pipeline, and the tools to declare more. The options of one
sink stand in that sink's file, declared with the same `option`. Nothing here reads the environment by itself: callers
hand a mapping in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from streamll.errors import ConfigurationError
from streamll.privacy.kinds import STRATEGIES, read_rules

if TYPE_CHECKING:
    from typing_extensions import Self

    from streamll.models import StreamllEvent

KIB = 1024
MIB = 1024 * 1024
YEAR = 365 * 24 * 3600

T = TypeVar("T", bound="OptionSet")

TRUE_WORDS = frozenset({"1", "true", "yes", "on"})
FALSE_WORDS = frozenset({"0", "false", "no", "off"})


def option(
    default: Any,
    doc: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    choices: Iterable[str] = (),
    unit: str = "",
    spellings: Mapping[str, str] | None = None,
    secret: bool = False,
) -> Any:
    """Declare an option of an `OptionSet`: a dataclass field that carries its own bounds and meaning.

    Args:
        default: The value when none is given; its type is the type that values are read as.
        doc: What it means, in a sentence.
        at_least: The lowest allowed number.
        above: The number that must be exceeded.
        at_most: The highest allowed number; a duration's is a year when none is given, since locks wait no longer.
        choices: The allowed words.
        unit: What a number counts: "s", "bytes", "events".
        spellings: Further words, in small letters, and which of the choices each means; true and false are read as such
            words.
        secret: The value is never shown: not in errors, nor in `repr` or `given`.
    """
    if unit == "s" and at_most is None:
        at_most = YEAR
    limits = {"at_least": at_least, "above": above, "at_most": at_most}
    words = {"choices": tuple(choices), "spellings": spellings or {}, "secret": secret}
    return dataclasses.field(default=default, repr=not secret, metadata={"doc": doc, "unit": unit, **words, **limits})


def _allowed(field: dataclasses.Field[Any]) -> str:
    meta = field.metadata
    if meta["choices"]:
        return "one of " + ", ".join(meta["choices"])
    kind = {"bool": "true or false", "int": "a whole number", "float": "a number"}.get(_kind(field), "a string")
    if meta["unit"]:
        kind += f" ({meta['unit']})"
    bounds = []
    if meta["at_least"] is not None:
        bounds.append(f"at least {meta['at_least']:g}" if meta["at_least"] < MIB else f"at least {meta['at_least']}")
    if meta["above"] is not None:
        bounds.append(f"above {meta['above']:g}")
    if meta["at_most"] is not None:
        bounds.append(f"at most {meta['at_most']:g}" if meta["at_most"] < MIB else f"at most {meta['at_most']}")
    text = " and ".join(bounds)
    if _is_optional(field):
        text = f"{text}, or none" if text else "or none"
    return f"{kind} {text}".strip()


def _kind(field: dataclasses.Field[Any]) -> str:
    """The first word of the annotation: "bool", "int", "float", "str", or the name of another type."""
    named = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    return named.split("|")[0].strip()


def _is_optional(field: dataclasses.Field[Any]) -> bool:
    return "None" in str(field.type)


def _refuse(owner: str, field: dataclasses.Field[Any], value: object) -> ConfigurationError:
    if field.metadata["secret"]:
        shown = "***"
    elif isinstance(value, int) and value.bit_length() > 128:
        shown = f"a number of {value.bit_length()} bits"  # Python does not write long ones
    elif isinstance(value, (str, int, float, type(None))):
        shown = repr(value)
        shown = shown if len(shown) <= 100 else f"{shown[:100]}..."
    else:
        shown = f"a {type(value).__name__}"
    return ConfigurationError(f"{owner}option {field.name}={shown}: must be {_allowed(field)}")


def unknown_option(owner: str, name: str, known: Iterable[str]) -> ConfigurationError:
    """Return the error for an option that does not exist: which one may have been meant, and which there are."""
    from difflib import get_close_matches

    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return ConfigurationError(f"{owner}unknown option {name!r}; {hint}the options are: {', '.join(names)}")


def _read_scalar(owner: str, field: dataclasses.Field[Any], value: object) -> object:
    """Turn what a user gave, a word of a URL or a value of Python, into the option's type, or refuse it."""
    kind = _kind(field)
    if _is_optional(field) and (value is None or (isinstance(value, str) and value.lower() in ("", "none"))):
        return None
    if kind == "bool":
        if isinstance(value, str):
            word = value.lower()
            value = True if word in TRUE_WORDS else False if word in FALSE_WORDS else value
        if isinstance(value, bool):
            return value
        raise _refuse(owner, field, value)
    if kind in ("int", "float"):
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise _refuse(owner, field, value)
        try:
            number = int(value) if kind == "int" else float(value)
        except (ValueError, OverflowError):
            raise _refuse(owner, field, value) from None
        if (isinstance(number, float) and not math.isfinite(number)) or (isinstance(value, float) and number != value):
            raise _refuse(owner, field, value)
        meta = field.metadata
        too_low = meta["at_least"] is not None and number < meta["at_least"]
        not_above = meta["above"] is not None and number <= meta["above"]
        too_high = meta["at_most"] is not None and number > meta["at_most"]
        if too_low or not_above or too_high:
            raise _refuse(owner, field, value)
        return number
    if kind == "str":
        spellings = field.metadata["spellings"]
        if spellings and isinstance(value, (str, bool)):
            value = spellings.get(str(value).lower(), value)
        if not isinstance(value, str):
            raise _refuse(owner, field, value)
        choices = field.metadata["choices"]
        if choices and value not in choices:
            raise _refuse(owner, field, value)
    return value


@dataclass(frozen=True)
class OptionSet:
    """A frozen set of validated options. Subclasses declare fields with `option`.

    Raises:
        ConfigurationError: When a value is of the wrong type or out of its bounds; names option, value and what is allowed.
    """

    owner: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _read_scalar(self.owner, field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Refuse combinations of options that each alone are fine; subclasses override it."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the options, in the order of the table."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], also: Iterable[str] = ()) -> Self:
        """Build the set from names and values, such as a URL's query.

        Args:
            values: Options by name; strings are read as the option's type.
            also: Further names to list in the message when one is unknown.

        Raises:
            ConfigurationError: When a name is unknown or a value is not allowed.
        """
        unknown = [name for name in values if name not in cls.names()]
        if unknown:
            raise unknown_option(cls.owner, unknown[0], {*cls.names(), *also})
        return cls(**values)

    @classmethod
    def from_env(cls, environ: Mapping[str, str], prefix: str = "STREAMLL_") -> dict[str, str]:
        """Pick this set's options out of an environment: `STREAMLL_BUFFER_SIZE=500` gives `{"buffer_size": "500"}`.

        Returns:
            The options found, unvalidated: an explicit setting may still override them.
        """
        found = {}
        for name in cls.names():
            value = environ.get(prefix + name.upper())
            if value is not None:
                found[name] = value
        return found

    def given(self) -> dict[str, str]:
        """The options that are not at their default, as the words of a URL; but none that is secret."""
        fields = [field for field in dataclasses.fields(self) if not field.metadata["secret"]]
        values = {field.name: (getattr(self, field.name), field.default) for field in fields}
        return {name: str(value) for name, (value, default) in values.items() if value != default}

    @classmethod
    def table(cls) -> list[dict[str, str]]:
        """The options as rows for the docs: name, default, allowed, meaning."""
        rows = []
        for field in dataclasses.fields(cls):
            row = {"name": field.name, "default": _shown(field.default, field.metadata["unit"])}
            rows.append({**row, "allowed": _allowed(field), "doc": field.metadata["doc"]})
        return rows


def _shown(value: object, unit: str) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if unit == "bytes" and isinstance(value, int) and value and value % MIB == 0:
        return f"{value // MIB} MiB"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g} {unit}".strip()
    return str(value) if value else "(empty)"


OVERFLOW_STRATEGIES = ("drop_oldest", "drop_newest", "block", "raise_error", "spill")
MEMORY, PROCESS, DISK = DURABILITIES = ("memory", "process", "disk")


@dataclass(frozen=True)
class SinkOptions(OptionSet):
    """What every sink can be told; the sinks add their own."""

    owner: ClassVar[str] = "sink "

    buffer_size: int = option(
        10_000, "Events held at most, those in flight included.", at_least=2, at_most=10_000_000, unit="events"
    )
    buffer_bytes: int = option(
        64 * MIB, "Bytes of encoded events held at most, those in flight included.", at_least=KIB, unit="bytes"
    )
    buffer_overflow_strategy: str = option(
        "drop_oldest",
        "What gives way when the buffer is full: the oldest events (a hundredth of them at once), the new one, the "
        "caller's time (block, at most block_timeout), the caller (raise_error: BufferFullError), or nothing, while the "
        "spool has room (spill).",
        choices=OVERFLOW_STRATEGIES,
    )
    block_timeout: float = option(1.0, "How long `block` waits for room.", at_least=0, at_most=3600, unit="s")
    batch_size: int = option(
        500, "Events in a batch; one is sent as soon as so many wait.", at_least=1, at_most=100_000, unit="events"
    )
    batch_bytes: int = option(
        1 * MIB, "Bytes of payload in a batch, at most, unless one event is larger.", at_least=1, unit="bytes"
    )
    batch_growth: int = option(
        10,
        "While more events wait than one batch holds, it grows up to so many times batch_size, within batch_bytes and "
        "half the buffer; 1 keeps batches at batch_size.",
        at_least=1,
        at_most=1000,
    )
    flush_interval: float = option(
        0.1, "How long the first event of a batch waits for company (linger).", at_least=0, at_most=3600, unit="s"
    )
    delivery_deadline: float | None = option(
        None, "An event not delivered so long after it was emitted is dropped as `expired`.", above=0, unit="s"
    )
    retry_base: float = option(
        0.1, "The wait before attempt n is drawn from 0 to retry_base * 2^(n-1) (full jitter).", at_least=0, unit="s"
    )
    retry_bound: float = option(30.0, "The longest such wait.", at_least=0, unit="s")
    circuit_breaker: bool = option(True, "Stop trying for a while after failure_threshold failures in a row.")
    failure_threshold: int = option(3, "Failed batches in a row that open the circuit.", at_least=1)
    recovery_timeout: float = option(
        30.0, "How long an open circuit waits before it lets one small batch through.", above=0, unit="s"
    )
    recovery_bound: float = option(
        300.0,
        "recovery_timeout doubles, with jitter, while the probes fail, up to this (and never below itself).",
        above=0,
        unit="s",
    )
    connect_timeout: float = option(5.0, "For opening a connection.", above=0, unit="s")
    send_timeout: float = option(10.0, "For one batch: written and answered.", above=0, unit="s")
    flush_timeout: float = option(5.0, "What flush() waits when not told otherwise.", at_least=0, unit="s")
    stop_timeout: float = option(5.0, "What stop() waits when not told otherwise.", at_least=0, unit="s")
    exit_timeout: float = option(2.0, "What the interpreter's exit waits for this sink.", at_least=0, unit="s")
    encoding: str = option("msgpack", "How events are encoded.", choices=("msgpack", "json"))
    dead_letter: bool = option(True, "Keep rejected events, with the reason, in the sink's dead-letter destination.")
    durability: str = option(
        MEMORY,
        "What an accepted event survives: nothing (memory), the end of the process by any means (process: it is in a "
        "memory-mapped file before emit returns), or also a power cut, but for the last moment (disk: synced every "
        "sync_interval).",
        choices=DURABILITIES,
    )
    spool_dir: str = option(
        "",
        "The folder for events on disk, on a local file system, shared by any number of processes; empty: "
        "streamll/spool in XDG_STATE_HOME, or in ~/.local/state.",
    )
    spool_bytes: int = option(
        256 * MIB,
        "Bytes on disk at most, over all processes with this spool_dir, give or take a segment for each. At a stop, what is "
        "left in memory may come on top.",
        at_least=128 * KIB,
        unit="bytes",
    )
    segment_bytes: int = option(
        8 * MIB, "Bytes of one file of the spool.", at_least=64 * KIB, at_most=1024 * MIB, unit="bytes"
    )
    sync_interval: float = option(
        0.1, "With durability=disk, how long after it was accepted an event is synced, at most.", above=0, unit="s"
    )

    @property
    def spools(self) -> bool:
        """Whether events may go to disk."""
        return self.durability != MEMORY or self.buffer_overflow_strategy == "spill"

    def check(self) -> None:
        """Refuse a spool that could not hold two segments, of which one is written while the other is delivered."""
        if self.spools and self.spool_bytes < 2 * self.segment_bytes:
            raise ConfigurationError(
                f"sink option spool_bytes={self.spool_bytes}: must be at least twice segment_bytes={self.segment_bytes}"
            )


SHORTEST_KEY = 16
REDACTIONS = ("keys", "full", "off")
OVERSIZE_POLICIES = ("cut", "dead_letter")


@dataclass(frozen=True)
class PipelineOptions(OptionSet):
    """What happens to an event before it becomes bytes, and who is named as its source."""

    owner: ClassVar[str] = "pipeline "

    max_event_bytes: int = option(
        1 * MIB, "The longest encoded event.", at_least=1 * KIB, at_most=512 * MIB, unit="bytes"
    )
    oversize: str = option(
        "cut",
        "A longer event has its values cut until it fits, or is dead-lettered, whole up to 16 times max_event_bytes.",
        choices=OVERSIZE_POLICIES,
    )
    redact: str | bool = option(
        "keys",
        "What is made unreadable before an event is encoded: values under sensitive keys (keys), or user ids, and personal "
        "data and credentials in any text, as well (full). docs/privacy.md says what is found.",
        choices=REDACTIONS,
        spellings={**dict.fromkeys(TRUE_WORDS, "keys"), **dict.fromkeys(FALSE_WORDS, "off")},
    )
    redact_strategy: str = option(
        "redact",
        "What is done to what is found: `[redacted]` takes its place, or a keyed pseudonym (hash); the value goes with its "
        "key (drop); or what is left says nothing alone, such as a card's last four digits (truncate).",
        choices=STRATEGIES,
    )
    redact_rules: str = option(
        "", "What is done to one kind instead, or keep: kinds and strategies, as `email=hash, phone=keep`."
    )
    pseudonym_key: str = option(
        "",
        "The secret under which pseudonyms are made, at least 16 characters: with the same one, a user has the same pseudonym "
        "in all processes. Empty: one made by chance for this process. Nothing shows it.",
        secret=True,
    )
    redact_keys: str = option("", "Further sensitive keys, separated by commas.")
    keep_keys: str = option("", "Keys that are never redacted, separated by commas.")
    sample_rate: float = option(
        1.0,
        "The share of executions whose events are sent, each as a whole and the same ones in all processes; of events "
        "outside of any, the share of them. Sent in any case: level error or critical, priority critical, event types ending "
        "in _alert or named in tail_types, spans that took tail_slow, and what sums up (metric, memory, profile, streamll.*).",
        at_least=0,
        at_most=1,
    )
    tail_events: int = option(
        0,
        "Events that were left out and are held for a while: whatever is sent in any case, but what sums up, has them sent "
        "before it, and the rest of its execution after it. 0: they are gone.",
        at_least=0,
        at_most=1_000_000,
        unit="events",
    )
    tail_bytes: int = option(4 * MIB, "Bytes of memory for such events.", at_least=KIB, unit="bytes")
    tail_seconds: float = option(10.0, "How long such an event is held.", above=0, unit="s")
    tail_slow: float | None = option(None, "A span that took so long is slow.", at_least=0, unit="s")
    tail_types: str = option("leak", "Event types that are alerts, beside those ending in _alert; separated by commas.")
    service: str = option("", "resource.service; else OTEL_SERVICE_NAME; else absent.")
    environment: str = option("", "resource.environment, such as production.")
    release: str = option("", "resource.release: the version that runs.")

    def check(self) -> None:
        """Refuse rules that name what there is not, and a key that is soon tried out."""
        try:
            read_rules(self.redact_rules, self.redact_strategy, self.redact == "full")
        except ValueError as error:
            raise ConfigurationError(f"{self.owner}option redact_rules: {error}") from None
        if 0 < len(self.pseudonym_key) < SHORTEST_KEY:
            raise ConfigurationError(f"{self.owner}option pseudonym_key: must have at least {SHORTEST_KEY} characters")


BeforeSend = Callable[["StreamllEvent"], "StreamllEvent | None"]
EventFilter = Callable[["StreamllEvent"], bool]
