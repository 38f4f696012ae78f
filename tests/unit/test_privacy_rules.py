"""Keys that name users, pseudonyms, and data for an application's own use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from decimal import Decimal
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll import privacy
from streamll.hub import hub
from streamll.options import PipelineOptions
from streamll.pipeline import Pipeline
from streamll.privacy import REDACTED, hash_sensitive, process_key, sanitize_attributes
from streamll.privacy.keys import CACHE_BOUND, KEY_BOUND
from streamll.privacy.kinds import read_rules
from streamll.privacy.process_key import VARIABLE
from streamll.privacy.pseudonyms import DIGITS, Pseudonyms
from streamll.privacy.rules import Rules, names_user
from streamll.privacy.sanitize import MAX_DEPTH, Sanitizer
from tests.unit.here import no_pseudonym_yet
from tests.unit.strategies import plain_maps, private_texts, secret_keys

KEY = "a key of this test alone"


@pytest.fixture(autouse=True)
def _no_key_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has made no pseudonym, and whose environment has no key."""
    monkeypatch.delenv(VARIABLE, raising=False)
    with no_pseudonym_yet():
        yield


class TestUsers:
    @pytest.mark.parametrize(
        "key",
        [
            *(
                "user_id",
                "userId",
                "USER-ID",
                "user.id",
                "userid",
                "owner_user_id",
                "enduser.id",
                "user_ids",
                "uid",
                "UID",
            ),
            *("customer_id", "customerId", "patient id", "http.request.user_id"),
        ],
    )
    def test_are_named_by_the_end_of_a_key(self, key: str) -> None:
        assert names_user(key)

    @pytest.mark.parametrize(
        "key",
        ["user", "id", "user_id_hash", "user_id_count", "userIdType", "pod_uid", "username", "user_idle", "", "fluid"],
    )
    def test_are_not_named_by_others(self, key: str) -> None:
        assert not names_user(key)


class TestPseudonyms:
    @given(st.text(), st.text(min_size=1))
    def test_are_the_same_for_the_same_value_and_key_only(self, text: str, other: str) -> None:
        made = hash_sensitive(text, KEY)
        assert made == hash_sensitive(text, KEY.encode()) == Pseudonyms(KEY).of(text)
        assert len(made) == DIGITS
        assert set(made) <= set("0123456789abcdef")
        assert made != hash_sensitive(text + other, KEY)
        assert made != hash_sensitive(text, KEY + other)

    @pytest.mark.parametrize("value", [5, "5", b"5", Decimal(5)])
    def test_are_those_of_what_is_written(self, value: Any) -> None:
        assert hash_sensitive(value, KEY) == hash_sensitive("5", KEY)

    def test_of_other_values(self) -> None:
        ident = UUID(int=5)
        assert hash_sensitive(ident, KEY) == hash_sensitive(str(ident), KEY)
        assert hash_sensitive(None, KEY) == hash_sensitive("", KEY)
        assert hash_sensitive(10**5000, KEY) != hash_sensitive(10**5000 + 1, KEY)
        with pytest.raises(TypeError, match="a list has no pseudonym"):
            hash_sensitive([], KEY)

    def test_take_a_key_of_any_length(self) -> None:
        assert hash_sensitive("x", "k" * 64) != hash_sensitive("x", "k" * 65) != hash_sensitive("x", "k" * 1000)

    def test_without_a_key_one_is_made_by_chance_which_is_said_once(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, "streamll"):
            first = hash_sensitive("u-1")
            assert hash_sensitive("u-1") == first
        assert len(caplog.records) == 1
        assert VARIABLE in caplog.text
        assert "u-1" not in caplog.text
        process_key._made.clear()
        assert hash_sensitive("u-1") != first

    def test_the_configured_key_comes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(VARIABLE, "a key of the environment")
        for redact in ("keys", "full"):
            monkeypatch.setattr(hub, "rules", Pipeline(PipelineOptions(redact=redact, pseudonym_key=KEY)).rules)
            assert hash_sensitive("u-1") == hash_sensitive("u-1", KEY)
            assert sanitize_attributes({"user_id": "u-1"}) == {"user_id_hash": hash_sensitive("u-1", KEY)}

    def test_the_environment_has_the_key(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv(VARIABLE, KEY)
        assert hash_sensitive("u-1") == hash_sensitive("u-1", KEY)
        assert not caplog.records


class TestRules:
    def test_a_verdict_is_remembered_up_to_a_bound_but_not_what_is_private_in_a_key(self) -> None:
        rules = Rules(texts=True)
        for number in range(CACHE_BOUND + 10):
            rules.verdict(f"password{number}")
        assert len(rules._verdicts) == 10
        assert rules.verdict("bob@example.com").name == "[redacted:email]"
        assert not any("bob" in key for key in (*rules._verdicts, *rules.harmless))

    def test_a_long_key_is_looked_at_as_far_as_it_is_wanted(self) -> None:
        rules = Rules(texts=True)
        key = "k" * 2 * KEY_BOUND + " bob@example.com"
        assert rules(key)
        assert rules.verdict(key).name == "k" * 2 * KEY_BOUND + " [redacted:email]"
        assert rules.verdict(key, KEY_BOUND).name == key

    def test_what_is_kept_is_not_looked_for(self) -> None:
        rules = Rules(strategies=read_rules("key=keep, user_id=keep"))
        assert not rules("password")
        assert not rules("user_id")
        assert not Rules(keep=["user_id"], strategies=read_rules(""))("userId")

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("u-1", hash_sensitive("u-1", KEY)),
            (None, None),
            ("", ""),
            ([1, None, "u-1"], [hash_sensitive("1", KEY), None, hash_sensitive("u-1", KEY)]),
            ((), []),
            ({"id": 1}, REDACTED),
            ([[1]], [REDACTED]),
            (list(range(1001)), REDACTED),
        ],
        ids=repr,
    )
    def test_what_stands_in_the_place_of_an_id(self, value: Any, expected: Any) -> None:
        rules = Rules(strategies=read_rules(""), pseudonyms=Pseudonyms(KEY))
        assert rules.replacement(rules.verdict("user_id"), value) == expected

    def test_what_stands_in_the_place_of_a_secret_that_is_hashed(self) -> None:
        rules = Rules(strategies=read_rules("", "hash"), pseudonyms=Pseudonyms(KEY))
        verdict = rules.verdict("password")
        assert rules.replacement(verdict, "x") == f"[key:{hash_sensitive('x', KEY)}]"
        assert rules.replacement(verdict, {"x": 1}) == REDACTED
        without = Rules(strategies=read_rules("", "hash"))
        assert without.replacement(without.verdict("password"), "x") == REDACTED


class TestSanitize:
    def test_removes_secrets_and_makes_users_pseudonyms_at_any_depth(self) -> None:
        attrs: dict[Any, Any] = {
            "user_id": "u-1",
            "password": "hunter2",
            "safe_key": "kept",
            "token_count": 5,
            "request": {"api_key": "k", "userId": 7, "items": [{"secret": 1, "n": 1}, ("a", {"auth": 2})]},
            7: {"token": 1},
        }
        before = repr(attrs)
        assert sanitize_attributes(attrs, key=KEY) == {
            "user_id_hash": hash_sensitive("u-1", KEY),
            "safe_key": "kept",
            "token_count": 5,
            "request": {"userId_hash": hash_sensitive(7, KEY), "items": [{"n": 1}, ("a", {})]},
            7: {},
        }
        assert repr(attrs) == before
        made = sanitize_attributes({"user_id": "u-1"})["user_id_hash"]
        assert made == hash_sensitive("u-1")

    def test_texts_are_looked_into_on_demand(self) -> None:
        attrs = {
            "note": "bob@example.com",
            "b": b"\xff bob@example.com",
            "bob@example.com": 1,
            "s": {"bob@example.com", "x"},
        }
        assert sanitize_attributes(attrs) == attrs
        assert sanitize_attributes(attrs, full=True) == {
            "note": "[redacted:email]",
            "b": b"\xff [redacted:email]",
            "[redacted:email]": 1,
            "s": {"[redacted:email]", "x"},
        }

    def test_all_else_is_kept_as_it_is(self) -> None:
        thing = object()
        attrs = {"thing": thing, "frozen": frozenset({1}), "map": MappingProxyType({"a": bytearray(b"x")}), "n": 1.5}
        made = sanitize_attributes(attrs, full=True)
        assert made["thing"] is thing
        assert made == {"thing": thing, "frozen": {1}, "map": {"a": b"x"}, "n": 1.5}
        assert sanitize_attributes({"s": {frozenset({"bob@example.com"})}}, full=True) == {"s": [{"[redacted:email]"}]}

    def test_a_name_that_is_taken_is_left_to_who_has_it(self) -> None:
        made = sanitize_attributes({"user_id": 1, "user_id_hash": "mine", "userid": 2}, key=KEY)
        assert made["user_id_hash"] == "mine"
        assert made["user_id_hash'"] == hash_sensitive(1, KEY)

    def test_what_stands_under_a_private_key_may_be_dropped(self) -> None:
        rules = Rules(strategies=read_rules("phone=drop"), texts=True)
        assert Sanitizer(rules).map({"bob@example.com": "+1234567890", "a": ["+1234567890"], 1: "+1234567890"}) == {
            "a": []
        }

    def test_what_goes_round_or_is_too_deep_ends(self) -> None:
        attrs: dict[str, Any] = {"a": 1}
        attrs["self"] = [attrs]
        assert sanitize_attributes(attrs) == {"a": 1, "self": [{"a": 1, "self": REDACTED}]}
        deep: Any = "bottom"
        for _ in range(MAX_DEPTH + 5):
            deep = [deep]
        assert "bottom" not in repr(sanitize_attributes({"deep": deep}))

    @given(plain_maps, secret_keys, private_texts)
    def test_nothing_private_is_left(self, attrs: dict[str, Any], key: str, text: str) -> None:
        made = sanitize_attributes({**attrs, key: "hunter2", "x": [text, {text: {key: 1}}]}, full=True, key=KEY)
        assert sanitize_attributes(made, full=True, key=KEY) == made
        assert "hunter2" not in repr(made)
        assert "example" not in repr(made)


class TestRoom:
    @pytest.mark.parametrize("name", privacy.__all__)
    def test_has_what_it_names(self, name: str) -> None:
        assert getattr(privacy, name)

    def test_has_nothing_else(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'detect_emial'"):
            privacy.detect_emial  # type: ignore[attr-defined]  # noqa: B018  # that it raises is the point
