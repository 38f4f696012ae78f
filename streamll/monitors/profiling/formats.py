"""What a profile looks like in a file, for the viewers there are.

What belongs here: the bytes of each format, as pure functions of what was counted, and writing them as a whole or not
at all. What does not: the counting.

Samples are sums: how often, and for how long, a stack was seen, not when. So formats that have an order in time show
each thread's stacks in the order of a call tree, one after the other, those that took most first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamll.errors import ConfigurationError
from streamll.monitors.profiling.stacks import Function, Owner, Sample, Samples, weight_of

VERSION = 1
"""Of the JSON format."""


@dataclass(frozen=True)
class Profile:
    """All that is to be written.

    Attributes:
        mode: What samples weigh: "cpu" or "wall".
        samples: What was sampled.
        data: `ActionProfiler.get_profile_data()`.
        name: What is shown as its title.
    """

    mode: str
    samples: Samples
    data: Mapping[str, Any] = field(default_factory=dict)
    name: str = "streamll"


def as_json(profile: Profile) -> bytes:
    """Everything that is known, in a form of our own: `data`, and the samples as tables that refer to each other."""
    samples = profile.samples
    return _json(
        {
            "format": "streamll-profile",
            "version": VERSION,
            "mode": profile.mode,
            **profile.data,
            "functions": [function._asdict() for function in samples.functions],
            "owners": [owner._asdict() for owner in samples.owners],
            "stacks": samples.stacks,
            "samples": [sample._asdict() for sample in samples.samples],
        }
    )


def as_collapsed(profile: Profile) -> bytes:
    """Lines of `thread;task: ...;outermost;...;innermost weight`, in microseconds: what flamegraph.pl and others read."""
    lines: dict[str, int] = {}
    for sample, ns in _weighed(profile):
        words = [*_words(profile.samples.owners[sample.owner]), *_names(profile.samples, sample)]
        line = ";".join(word.replace(";", ",").replace("\n", " ") for word in words)
        lines[line] = lines.get(line, 0) + ns
    return "".join(f"{line} {max(1, round(ns / 1000))}\n" for line, ns in sorted(lines.items())).encode()


def as_speedscope(profile: Profile) -> bytes:
    """A file for https://www.speedscope.app, by its schema: a sampled profile for each thread, in nanoseconds."""
    frames: list[dict[str, Any]] = []
    numbers: dict[tuple[str, str, int], int] = {}

    def number(frame: Function) -> int:
        if frame not in numbers:
            numbers[frame] = len(frames)
            shown: dict[str, Any] = {"name": frame.name}
            if frame.file:
                shown.update(file=frame.file, line=frame.line)
            frames.append(shown)
        return numbers[frame]

    threads: dict[str, list[tuple[list[int], int]]] = {}
    for sample, ns in _weighed(profile):
        owner = profile.samples.owners[sample.owner]
        stack = [number(Function(word, "", 0)) for word in _words(owner)[1:]]
        stack += [number(profile.samples.functions[place]) for place in profile.samples.stacks[sample.stack]]
        threads.setdefault(owner.thread, []).append((stack, ns))
    profiles = []
    for thread, rows in threads.items():
        rows.sort()
        weights = [ns for _, ns in rows]
        profiles.append(
            {
                "type": "sampled",
                "name": thread,
                "unit": "nanoseconds",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": [stack for stack, _ in rows],
                "weights": weights,
            }
        )
    return _json(
        {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "name": profile.name,
            "exporter": "streamll",
            "activeProfileIndex": 0 if profiles else None,
            "shared": {"frames": frames},
            "profiles": profiles,
        }
    )


def as_pstats(profile: Profile) -> bytes:
    """What `pstats.Stats` and the viewers of cProfile's files load. Where they show calls, these are samples.

    Where stacks were not sampled, the profiled actions stand there, with their calls.
    """
    import marshal

    table: dict[tuple[str, int, str], _Row] = {}
    for sample, ns in _weighed(profile):
        stack = profile.samples.stacks[sample.stack]
        keys = [(function.file or "~", function.line, function.name) for function in map(_at(profile.samples), stack)]
        seen: set[tuple[str, int, str]] = set()
        for outer, key in zip((None, *keys), keys, strict=False):
            row = table.setdefault(key, _Row())
            innermost = outer is not None and key == keys[-1]
            if key not in seen:
                seen.add(key)
                row.calls += sample.times
                row.total += ns
                if outer is not None and outer != key:
                    caller = row.callers.setdefault(outer, [0, 0, 0])
                    caller[0] += sample.times
                    caller[1] += ns if innermost else 0
                    caller[2] += ns
        table[keys[-1]].own += ns
    stats: dict[Any, Any] = {}
    for key, row in table.items():
        callers = {outer: (count, count, own / 1e9, total / 1e9) for outer, (count, own, total) in row.callers.items()}
        stats[key] = (row.calls, row.calls, row.own / 1e9, row.total / 1e9, callers)
    if not stats:
        for name, made in profile.data.get("profiles", {}).items():
            stats["~", 0, name] = (made["calls"], made["calls"], made["self_time"] or 0.0, made["wall_time"], {})
    return marshal.dumps(stats)


def as_chrome(profile: Profile) -> bytes:
    """The Trace Event Format that Perfetto and chrome://tracing read: complete events of a call tree for each thread."""
    trees: dict[str, _Node] = {}
    for sample, ns in _weighed(profile):
        owner = profile.samples.owners[sample.owner]
        node = trees.setdefault(owner.thread, _Node())
        node.ns += ns
        for name in (*_words(owner)[1:], *_names(profile.samples, sample)):
            node = node.inner.setdefault(name, _Node())
            node.ns += ns
            node.times += sample.times
    process = os.getpid()
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": process, "tid": 0, "name": "process_name", "args": {"name": profile.name}}
    ]
    for number, (thread, tree) in enumerate(trees.items(), 1):
        events.append({"ph": "M", "pid": process, "tid": number, "name": "thread_name", "args": {"name": thread}})
        for name, begin, node in tree.walk(0):
            events.append(
                {
                    "ph": "X",
                    "pid": process,
                    "tid": number,
                    "name": name,
                    "cat": profile.mode,
                    "ts": begin / 1000,
                    "dur": node.ns / 1000,
                    "args": {"samples": node.times},
                }
            )
    note = "sums of samples: the order of what stands side by side is not that of time"
    return _json({"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"note": note}})


FORMATS: dict[str, Callable[[Profile], bytes]] = {
    "json": as_json,
    "speedscope": as_speedscope,
    "collapsed": as_collapsed,
    "pstats": as_pstats,
    "chrome": as_chrome,
}
"""By the name that `export` takes."""


def write_profile(profile: Profile, path: str | os.PathLike[str], format: str) -> None:
    """Write a profile to a file, all of it or nothing.

    Args:
        profile: What was counted.
        path: Where to; what is there is replaced.
        format: One of FORMATS.

    Raises:
        ConfigurationError: When there is no such format.
        OSError: When the file cannot be written.
    """
    write = FORMATS.get(format)
    if write is None:
        raise ConfigurationError(f"profiler: there is no format {format!r}; the formats are: {', '.join(FORMATS)}")
    target = Path(path)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(write(profile))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@dataclass
class _Row:
    calls: int = 0
    own: int = 0
    total: int = 0
    callers: dict[tuple[str, int, str], list[int]] = field(default_factory=dict)


@dataclass
class _Node:
    ns: int = 0
    times: int = 0
    inner: dict[str, _Node] = field(default_factory=dict)

    def walk(self, begin: int) -> Iterator[tuple[str, int, _Node]]:
        """All nodes inside, each with its name and its beginning: after those beside it that took more."""
        for name, node in sorted(self.inner.items(), key=lambda each: (-each[1].ns, each[0])):
            yield name, begin, node
            yield from node.walk(begin)
            begin += node.ns


def _json(value: Any) -> bytes:
    import json

    return json.dumps(value).encode()


def _weighed(profile: Profile) -> Iterator[tuple[Sample, int]]:
    weigh = weight_of(profile.mode)
    for sample in profile.samples.samples:
        ns = weigh(sample)
        if ns:
            yield sample, ns


def _at(samples: Samples) -> Callable[[int], Function]:
    return samples.functions.__getitem__


def _names(samples: Samples, sample: Sample) -> list[str]:
    found = []
    for place in samples.stacks[sample.stack]:
        function = samples.functions[place]
        where = f" ({function.file.replace(os.sep, '/').rsplit('/', 1)[-1]}:{function.line})" if function.file else ""
        found.append(f"{function.name}{where}")
    return found


def _words(owner: Owner) -> list[str]:
    """An owner as frames around its stacks."""
    words = [owner.thread]
    words += [f"{kind}: {word}" for kind, word in owner._asdict().items() if word and kind != "thread"]
    return words
