"""The arrows of ARCHITECTURE.md, and what an import costs and does."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import streamll

PACKAGE = Path(streamll.__file__).parent

LOW = frozenset("models ids errors options privacy tally ranges sketch hub context".split())
"""What everybody may import, and what imports nothing of ours but each other."""

ARROWS: dict[str, frozenset[str]] = {
    **dict.fromkeys(LOW, LOW),
    "plain": LOW,
    "values": LOW | {"plain"},
    "redaction": LOW | {"codec", "plain"},
    "codec": LOW,
    "propagation": LOW,
    "spans": LOW,
    "steps": LOW | {"spans"},
    "tracing": LOW | {"spans", "steps"},
    "sampling": LOW,
    "pipeline": LOW | {"values", "codec", "plain", "redaction", "sampling"},
    "delivery": frozenset({"models", "errors", "options", "ranges"}),
    "runtime": LOW | {"delivery"},
    "wire": frozenset({"models", "codec", "errors"}),
    "brokers": frozenset({"errors", "options", "delivery.outcome", "runtime.fork", "wire"}),
    "sinks": LOW | {"values", "codec", "pipeline", "delivery", "runtime", "brokers", "wire", "views.line"},
    "consumers": LOW | {"values", "codec", "delivery.backoff", "delivery.outcome", "brokers", "wire"},
    "monitoring": LOW | {"api", "monitors", "views.summary", "runtime.fork", "runtime.leave"},
    "replay": LOW | {"codec", "delivery", "runtime", "brokers", "wire", "sinks", "consumers", "registry"},
    "views": LOW | {"codec", "values"},
    "monitors": LOW | {"spans", "steps", "tracing", "propagation", "plain", "values", "runtime.fork", "runtime.wakeup"},
    "integrations": LOW | {"spans", "tracing", "propagation"},
    "registry": frozenset({"errors", "options", "sinks.base"}),
    "api": LOW | {"pipeline", "sampling", "spans", "registry", "sinks.base", "runtime.leave", "runtime.executor"},
    "testing": LOW | {"codec", "pipeline", "delivery", "runtime", "sinks.base"},
    "cli": LOW
    | {"values", "codec", "registry", "sinks.base", "consumers", "replay", "monitoring", "views", "streamll"}
    | {"runtime.spool", "runtime.leave", "runtime.signals"},
    "__main__": frozenset({"cli"}),
    "streamll": frozenset(),
}
"""Room by room (a module or a package): the rooms, or the modules of one, that it may import."""

HOMES_OF_OTHERS = {
    "redis": {"brokers", "sinks", "consumers"},
    "pika": {"brokers", "sinks", "consumers"},
    "tenacity": {"delivery.backoff", "runtime.worker", "consumers"},
    "msgpack": {"codec"},
    "celery": {"integrations.celery"},
}
"""Rooms or modules in which a library may be imported."""


class Import(NamedTuple):
    """One import statement, of one module."""

    target: str
    only_for_types: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


@cache
def imports(module: str) -> tuple[Import, ...]:
    """Every import in a module, also those within functions."""

    def find(node: ast.AST, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, for_types) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    yield Import(whole if whole in MODULES else str(child.module), for_types)
            else:
                typing = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                yield from find(child, for_types or typing)

    return tuple(find(ast.parse(MODULES[module].read_text()), False))


def ours(module: str) -> list[Import]:
    return [found for found in imports(module) if found.target.split(".")[0] == "streamll"]


def within(target: str, allowed: frozenset[str] | set[str]) -> bool:
    """Whether a module is one of the allowed rooms or modules, or inside one."""
    name = target.removeprefix("streamll.")
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


class TestArrows:
    def test_every_room_has_its_arrows(self) -> None:
        assert {room(module) for module in MODULES} == set(ARROWS)

    @pytest.mark.parametrize("module", MODULES)
    def test_point_down_only(self, module: str) -> None:
        allowed = ARROWS[room(module)] | {room(module)}
        upward = [
            found.target for found in ours(module) if not found.only_for_types and not within(found.target, allowed)
        ]
        assert upward == []

    def test_have_no_cycle(self) -> None:
        """Not among modules either, and an import inside a function does not hide one."""
        done: set[str] = set()

        def visit(module: str, path: tuple[str, ...]) -> None:
            assert module not in path, f"a cycle: {' -> '.join((*path, module))}"
            if module not in done:
                for found in ours(module):
                    if not found.only_for_types and found.target in MODULES and found.target != module:
                        visit(found.target, (*path, module))
                done.add(module)

        for module in MODULES:
            visit(module, ())

    @pytest.mark.parametrize("package", ["sinks", "consumers", "wire"])
    def test_siblings_that_know_different_things_do_not_know_each_other(self, package: str) -> None:
        def family(module: str) -> str:
            return module.split(".")[2].split("_")[0]

        shared = {"base", "stats", "received", "seen", "entry", "frame"}
        for module in MODULES:
            if module.startswith(f"streamll.{package}."):
                known = {
                    family(found.target) for found in ours(module) if found.target.startswith(f"streamll.{package}.")
                }
                assert known <= {family(module), *shared}, module

    def test_nothing_imports_the_command_line(self) -> None:
        for module in MODULES:
            if room(module) not in ("cli", "__main__"):
                assert not any(room(found.target) == "cli" for found in ours(module)), module

    @pytest.mark.parametrize("module", MODULES)
    def test_libraries_are_imported_in_their_homes_only(self, module: str) -> None:
        for found in imports(module):
            library = found.target.split(".")[0]
            if library in HOMES_OF_OTHERS and not found.only_for_types:
                assert within(module, HOMES_OF_OTHERS[library]), library

    @pytest.mark.parametrize("module", [module for module in MODULES if room(module) == "delivery"])
    def test_decisions_have_no_thread_clock_socket_or_chance(self, module: str) -> None:
        forbidden = {
            "threading",
            "_thread",
            "time",
            "socket",
            "random",
            "secrets",
            "os",
            "asyncio",
            "select",
            "logging",
        }
        assert not forbidden & {found.target.split(".")[0] for found in imports(module)}

    @pytest.mark.parametrize(
        "module",
        [
            module
            for module in MODULES
            if room(module) in ("codec", "privacy", "values", "plain", "redaction", "wire", "views")
            and module != "streamll.privacy.process_key"
        ],
    )
    def test_pure_rooms_have_no_thread_or_socket(self, module: str) -> None:
        forbidden = {"threading", "_thread", "socket", "random", "secrets", "asyncio", "select", "logging"}
        assert not forbidden & {found.target.split(".")[0] for found in imports(module)}

    @pytest.mark.parametrize("module", ["streamll.runtime.segment", "streamll.ranges"])
    def test_bytes_on_disk_are_understood_without_touching_one(self, module: str) -> None:
        forbidden = {"threading", "_thread", "socket", "random", "secrets", "time", "os", "mmap", "pathlib", "logging"}
        assert not forbidden & {found.target.split(".")[0] for found in imports(module)}

    @pytest.mark.parametrize("module", MODULES)
    def test_every_module_says_what_it_is(self, module: str) -> None:
        assert ast.get_docstring(ast.parse(MODULES[module].read_text()))


def run(program: str) -> list[str]:
    """The words that a program prints, in a fresh interpreter that no coverage tool is in."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


HEAVY = {"redis", "pika", "tenacity", "msgpack", "hiredis", "numpy", "pydantic", "psutil"} | {
    *("asyncio", "concurrent", "ssl", "multiprocessing", "http", "email", "unittest", "json", "secrets", "hashlib"),
    "importlib.metadata",
}


class TestImport:
    def test_of_the_package_imports_nothing_of_it(self) -> None:
        loaded = run("import sys, streamll; print(*sys.modules)")
        assert [name for name in loaded if name.startswith("streamll")] == ["streamll"]
        assert not HEAVY & set(loaded)
        assert "msgspec" not in loaded

    @pytest.mark.parametrize(
        "use",
        ["import streamll.api", "import streamll; streamll.emit, streamll.span, streamll.trace, streamll.configure"],
    )
    def test_of_what_an_application_uses_imports_no_broker_and_nothing_heavy(self, use: str) -> None:
        loaded = run(f"import sys; before = set(sys.modules); {use}; print(*set(sys.modules) - before)")
        assert "streamll.api" in loaded
        assert not HEAVY & set(loaded)
        assert not any(
            name.startswith(("streamll.sinks", "streamll.delivery", "streamll.consumers")) for name in loaded
        )

    def test_of_sinks_readers_and_commands_imports_no_client_library(self) -> None:
        """Those come with the first connection, so that a wrong option is refused without them."""
        parts = (
            "sinks.redis sinks.rabbitmq sinks.file sinks.terminal sinks.memory consumers registry cli testing".split()
        )
        loaded = run(f"import sys, {', '.join(f'streamll.{part}' for part in parts)}; print(*sys.modules)")
        assert "streamll.sinks.rabbitmq" in loaded
        assert not {"redis", "pika", "tenacity", "msgpack", "hiredis", "psutil", "numpy"} & set(loaded)

    def test_starts_no_thread_and_reads_no_environment(self) -> None:
        program = """
import os, sys, threading
read = []
class Environ(dict):
    def __getitem__(self, key): read.append(key); return super().__getitem__(key)
    def get(self, key, default=None): read.append(key); return super().get(key, default)
os.environ = Environ(os.environ)
import streamll.api, streamll.tracing, streamll.propagation
print(threading.active_count(), *[name for name in read if "STREAMLL" in name or "OTEL" in name])
"""
        assert run(program) == ["1"]


PUBLIC = [name for name in streamll.__all__ if name != "__version__"]


class TestPublicNames:
    def test_resolve_in_a_fresh_interpreter_in_any_order(self) -> None:
        for names in (PUBLIC, PUBLIC[::-1]):
            program = f"import streamll; print(*[type(getattr(streamll, name)).__name__ for name in {names}])"
            assert "module" not in run(program)

    def test_are_not_shadowed_by_modules_that_were_imported_before(self) -> None:
        every = [module for module in MODULES if not module.startswith(("streamll.cli", "streamll.testing"))]
        program = f"""
from importlib import import_module
for module in {every}: import_module(module)
import streamll
from types import ModuleType
print(*[name for name in {PUBLIC} if isinstance(getattr(streamll, name), ModuleType) or not callable(getattr(streamll, name))])
"""
        assert run(program) == []

    def test_no_module_has_the_name_of_one(self) -> None:
        assert not set(PUBLIC) & {module.split(".")[1] for module in MODULES if "." in module}

    def test_are_all_there_is_a_home_for_and_are_listed(self) -> None:
        assert set(PUBLIC) == set(streamll._HOMES)
        assert set(PUBLIC) <= set(dir(streamll))
        assert streamll.__all__ == sorted(streamll.__all__)

    def test_are_the_things_at_home(self) -> None:
        for name, home in streamll._HOMES.items():
            thing = getattr(streamll, name)
            assert thing is getattr(sys.modules[f"streamll.{home}"], name)
            assert thing.__doc__

    def test_modules_that_people_reach_through_the_package_need_no_import(self) -> None:
        assert run("import streamll; print(streamll.testing.capture.__name__, streamll.consumers.__name__)") == [
            "capture",
            "streamll.consumers",
        ]
        assert {name for name in dir(streamll) if not name.startswith("__")} - set(PUBLIC) == {
            "consumers",
            "privacy",
            "testing",
        }

    def test_others_are_an_attribute_error(self) -> None:
        with pytest.raises(AttributeError, match="module 'streamll' has no attribute 'emitt'"):
            streamll.emitt  # type: ignore[attr-defined]  # noqa: B018  # that it raises is the point
