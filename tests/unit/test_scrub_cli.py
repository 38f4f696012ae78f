"""`streamll scrub`: what it shows, what it never shows, and the copy it writes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from streamll import codec
from streamll.cli import main
from streamll.models import StreamllEvent
from streamll.wire.file import event_line
from tests.unit.here import no_pseudonym_yet
from tests.unit.strategies import private_texts

EVENT = StreamllEvent(
    event_type="signed_up",
    event_id="1234567890123456",
    data={
        "password": "hunter2",
        "note": "from bob@example.com",
        "user_id": 5,
        "bob@example.com": {"calls": [1, "+44 20 7123 4567"]},
    },
)
LINE = event_line(codec.to_json(EVENT), "4111111111111111", 1)

Scrubbed = tuple[int, list[str], str]


@pytest.fixture
def scrubbed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Scrubbed]:
    """Scrub a file of these lines; returns the exit code, the lines and the words beside them."""

    def scrub(content: bytes, *words: str) -> Scrubbed:
        (tmp_path / "in").write_bytes(content)
        code = main(["scrub", str(tmp_path / "in"), *words])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return scrub


def test_each_finding_is_a_line_that_says_where_and_what_but_never_shows_it(scrubbed: Callable[..., Scrubbed]) -> None:
    code, lines, err = scrubbed(b'{"event_type":"ok"}\n' + LINE)
    assert (code, err) == (1, "")
    assert lines == [
        "line 2: data.password: key, 7 characters -> redact",
        "line 2: data.note: email, 15 characters -> redact",
        "line 2: data.user_id: user_id -> hash",
        "line 2: data.[redacted:email]: email -> redact",
        "line 2: data.[redacted:email].calls.1: phone, 16 characters -> redact",
        "found in 1 of 2 lines: email 2, key 1, phone 1, user_id 1",
    ]


def test_as_json(scrubbed: Callable[..., Scrubbed]) -> None:
    _, lines, _ = scrubbed(LINE, "--json", "--rules", "user_id=keep,phone=keep,email=drop")
    assert [json.loads(line) for line in lines][:2] == [
        {"line": 1, "path": ["data", "password"], "kind": "key", "strategy": "redact", "length": 7},
        {"line": 1, "path": ["data", "note"], "kind": "email", "strategy": "drop", "length": 15},
    ]


def test_keys_only_and_which(scrubbed: Callable[..., Scrubbed]) -> None:
    _, lines, _ = scrubbed(LINE, "--keys")
    assert lines == ["line 1: data.password: key, 7 characters -> redact", "found in 1 of 1 line: key 1"]
    assert scrubbed(LINE, "--keys", "--keep", "password")[:2] == (0, ["nothing found in 1 line"])
    assert scrubbed(LINE, "--keys", "--also", "note, calls")[1] == [
        "line 1: data.password: key, 7 characters -> redact",
        "line 1: data.note: key, 20 characters -> redact",
        "line 1: data.[redacted:email].calls: key -> redact",
        "found in 1 of 1 line: key 3",
    ]


def test_a_copy_has_nothing_left_to_be_found(scrubbed: Callable[..., Scrubbed], tmp_path: Path) -> None:
    clean = b'{"event_type": "ok",  "data": {"a": 1.50}}\r\n'
    out = tmp_path / "out"
    with no_pseudonym_yet():
        code, _, err = scrubbed(clean + LINE + b"mail bob@example.com", "--write", str(out))
    assert code == 1
    assert "another process" in err
    copied = out.read_bytes().splitlines(keepends=True)
    assert copied[0] == clean
    event = json.loads(copied[1])
    data = event["data"]
    assert data.pop("user_id_hash").isalnum()
    assert data == {
        "password": "[redacted]",
        "note": "from [redacted:email]",
        "[redacted:email]": {"calls": [1, "[redacted:phone]"]},
    }
    assert (event["event_id"], event["producer"]) == ("1234567890123456", "4111111111111111")
    assert copied[2] == b"mail [redacted:email]"
    assert out.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.glob(".scrub*")) == []
    assert main(["scrub", str(out)]) == 0


@given(private_texts)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_copy_of_anything_has_nothing_left(tmp_path: Path, text: str) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.write_bytes(
        json.dumps({"a": {text: [text]}}).encode() + b"\n" + text.encode("utf-8", "surrogatepass") + b"\n\xff" + b"\n"
    )
    found = main(["scrub", str(source), "--write", str(out)])
    if found:
        assert main(["scrub", str(out)]) == 0
    else:
        assert out.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": "bob@example.com", "a": 1}',
        b'{"a": "bob@example.com"',
        b"[" * 5000 + b'"bob@example.com"' + b"]" * 5000,
        b'{"a": ' * 100 + b'"bob@example.com"' + b"}" * 100,
        b'{"a": "\\ud800 bob\\u0040example.com"}',
        b"\xff\xfe bob@example.com",
        b"bob@example.com\r\n",
    ],
    ids=["twice", "unfinished", "nested", "deep", "surrogate", "bytes", "line end"],
)
def test_what_is_no_usual_data_is_looked_through_too(
    scrubbed: Callable[..., Scrubbed], tmp_path: Path, text: bytes
) -> None:
    code, _, _ = scrubbed(text, "--write", str(tmp_path / "out"))
    assert code == 1
    copied = (tmp_path / "out").read_bytes()
    assert b"bob" not in copied
    assert copied.endswith(b"\n") == text.endswith(b"\n")


def test_a_private_key_of_many_lines_is_one(scrubbed: Callable[..., Scrubbed], tmp_path: Path) -> None:
    key = b"-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----\n"
    out = tmp_path / "out"
    _, lines, _ = scrubbed(b"a\n" + key + b"b@example.com\n", "--write", str(out))
    assert lines[0].startswith("line 2: text: private_key, ")
    assert lines[1].startswith("line 5: text: email")
    assert lines[2] == "found in 2 of 5 lines: email 1, private_key 1"
    assert out.read_bytes() == b"a\n[redacted:private_key]\n[redacted:email]\n"
    _, lines, _ = scrubbed(b"-----BEGIN PRIVATE KEY-----\n" + b"MIIE\n" * 3, "--write", str(out))
    assert out.read_bytes() == b"[redacted:private_key]\n"
    _, lines, _ = scrubbed(b"-----BEGIN PRIVATE KEY-----\n" + b"MIIE\n" * 600)
    assert lines[-1] == "found in 1 of 601 lines: private_key 1"


def test_what_is_dropped_is_gone(scrubbed: Callable[..., Scrubbed], tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = b'{"a": ["bob@example.com", 1], "password": 1, "b": "bob@example.com"}\nbob@example.com\n'
    scrubbed(text, "--strategy", "drop", "--write", str(out))
    assert out.read_bytes() == b'{"a":[1]}\n\n'


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"bob@example.com")))
    assert main(["scrub", "-"]) == 1
    assert capsys.readouterr().out.splitlines()[0] == "line 1: text: email, 15 characters -> redact"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{tmp}/none"], "none: No such file or directory"),
        (["{tmp}"], "Is a directory"),
        (["{tmp}/in", "--write", "{tmp}/in"], "that is the file itself"),
        (["{tmp}/in", "--write", "{tmp}/none/out"], "No such file or directory"),
        (["{tmp}/in", "--write", "{tmp}"], "Is a directory"),
        (["{tmp}/in", "--rules", "e=hash"], "--rules: there is no kind 'e'"),
        (["{tmp}/in", "--keys", "--rules", "email=hash"], "email is looked for with redact=full only"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (tmp_path / "in").write_bytes(LINE)
    assert main(["scrub", *(word.format(tmp=tmp_path) for word in words)]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.glob(".scrub*")) == []


def test_a_copy_that_finds_no_room_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is gone on while it is written: nothing of it gets its name."""

    def fail(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    (tmp_path / "in").write_bytes(LINE)
    monkeypatch.setattr(Path, "replace", fail)
    assert main(["scrub", str(tmp_path / "in"), "--write", str(tmp_path / "out")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
