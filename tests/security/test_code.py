"""Nothing in the package turns data into code, or trusts a temporary name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import streamll

PACKAGE = Path(streamll.__file__).parent

FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "yaml",
    "jsonpickle",
    "code",
    "codeop",
}
FORBIDDEN_CALLS = {
    *(
        "eval",
        "exec",
        "compile",
        "__import__",
        "execfile",
        "os.system",
        "os.popen",
        "os.execv",
        "os.execve",
        "os.spawnl",
    ),
    *("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output", "tempfile.mktemp"),
    *("pickle.loads", "pickle.load", "marshal.loads", "yaml.load", "runpy.run_path", "ctypes.CDLL"),
}
MAY_IMPORT_BY_NAME = {"registry.py", "monitoring.py", "interpreters.py", "__init__.py"}
"""From tables of their own, or by an entry point that the user installed."""


ON_PURPOSE = {
    # `streamll run` runs the program that its user names, as python would.
    ("program.py", "compile"),
    ("program.py", "exec"),
    # The format of pstats is written, and never read.
    ("formats.py", "import marshal"),
    # The C library that the process runs on, by its own name: no data decides which.
    ("readings.py", "ctypes.CDLL"),
}


def found() -> Iterator[tuple[str, str]]:
    """What each file imports and calls, by its full name as far as it is written out."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path.name, f"import {alias.name.partition('.')[0]}") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield path.name, f"import {(node.module or '').partition('.')[0]}"
                yield from ((path.name, f"{node.module}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Call):
                yield path.name, ast.unparse(node.func)


def test_no_data_becomes_code() -> None:
    forbidden = FORBIDDEN_CALLS | {f"import {name}" for name in FORBIDDEN_MODULES}
    seen = list(found())
    assert len(seen) > 1000
    assert [each for each in seen if each[1] in forbidden and each not in ON_PURPOSE] == []


def test_modules_are_imported_by_name_in_few_places() -> None:
    files = {file for file, name in found() if name.rpartition(".")[2] == "import_module"}
    assert files <= MAY_IMPORT_BY_NAME
