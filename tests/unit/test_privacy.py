"""Which keys name a secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.privacy.keys import CACHE_BOUND, KEY_BOUND, SensitiveKeys, words_of
from tests.unit.strategies import secret_keys


class TestWords:
    @pytest.mark.parametrize(
        ("key", "words"),
        [
            ("X-Api-Key", ("x", "api", "key")),
            ("xApiKey", ("x", "api", "key")),
            ("x_api_key", ("x", "api", "key")),
            ("APIKey", ("api", "key")),
            ("HTTPResponse2xx", ("http", "response", "2", "xx")),
            ("motDePasseé", ("mot", "de", "passe", "é")),
            ("", ()),
            ("...", ()),
        ],
    )
    def test_are_split_at_punctuation_and_humps(self, key: str, words: tuple[str, ...]) -> None:
        assert words_of(key) == words

    @given(st.text())
    def test_of_any_text_are_in_small_letters_and_in_it(self, key: str) -> None:
        for word in words_of(key):
            assert word == word.lower()
            assert word
            assert word in key.lower()


class TestSensitive:
    @pytest.mark.parametrize(
        "key",
        [
            *(
                "password",
                "PASSWORD",
                "Password",
                "passWord",
                "dbPassword",
                "db.password",
                "DB-PASSWORD",
                "password_old",
            ),
            *("user[password]", "password1", "DBpassword", "AWSsecret", "JWTtoken", "pass_word", "passwd", "pwd"),
            *("api_key", "apiKey", "APIkey", "X-Api-Key", "x_apikey", "access_token", "accessToken", "id_token"),
            *(
                "Authorization",
                "proxy-authorization",
                "auth",
                "OAuth",
                "Set-Cookie",
                "cookie",
                "sessionId",
                "session.id",
            ),
            *("client_secret", "secretKey", "private_key_pem", "signing-key", "aws_secret_access_key", "csrf_token"),
            *("credit_card", "card number", "cvv", "ssn", "connectionString", "credentials", "jwt", "bearer"),
        ],
    )
    def test_a_term_as_a_whole_word_in_any_spelling(self, key: str) -> None:
        assert SensitiveKeys()(key)

    @pytest.mark.parametrize(
        "key",
        [
            *(
                "token_count",
                "tokens",
                "max_tokens",
                "tokenizer",
                "totalTokens",
                "token_limit",
                "tokenType",
                "TOKENcount",
            ),
            *("safe_key", "key", "keyboard", "author", "authority", "secretary", "password_length", "passwordRequired"),
            *("session", "cardinal", "monkey", "access", "api", "private", "string", "api_keys_total", "discookie", ""),
            *("text", "k", "1", "é", "_", "cookie_count", "auth_method", "secret_name", "credential_type"),
        ],
    )
    def test_neither_a_part_of_a_word_nor_what_measures_a_secret(self, key: str) -> None:
        assert not SensitiveKeys()(key)

    @given(secret_keys, st.sampled_from(["", "user_", "my.", "x-"]), st.sampled_from(["", "_old", "-2", ".0"]))
    def test_every_term_in_every_spelling_between_other_words(self, key: str, before: str, after: str) -> None:
        assert SensitiveKeys()(before + key + after)

    @given(st.text(max_size=50))
    def test_any_text_is_decided_and_decided_the_same_again(self, key: str) -> None:
        sensitive = SensitiveKeys()
        first = sensitive(key)
        assert sensitive(key) is first
        assert sensitive.harmless == (set() if first else {key})

    def test_further_terms_are_taken_in_any_spelling(self) -> None:
        sensitive = SensitiveKeys(also=["badgeNumber", "PIN", "..."])
        assert sensitive("badge_number")
        assert sensitive("user.badge-number.old")
        assert sensitive("pin")
        assert not sensitive("badge")
        assert not sensitive("opinion")
        assert not SensitiveKeys()("pin")

    def test_a_longer_further_term_is_found_whole(self) -> None:
        assert SensitiveKeys(also=["mother maiden name in full"])("motherMaidenNameInFull")

    def test_kept_keys_are_whole_keys_in_any_spelling(self) -> None:
        sensitive = SensitiveKeys(keep=["next_token"])
        assert not sensitive("nextToken")
        assert not sensitive("NEXT-TOKEN")
        assert sensitive("my_next_token")

    def test_a_key_may_be_kept_and_a_term_added(self) -> None:
        sensitive = SensitiveKeys(also=["badge"], keep=["badge_color"])
        assert sensitive("badge_id")
        assert not sensitive("badgeColor")


class TestMemory:
    def test_decisions_are_remembered_up_to_a_bound(self) -> None:
        sensitive = SensitiveKeys()
        for number in range(CACHE_BOUND + 10):
            assert not sensitive(f"k{number}")
        assert len(sensitive.harmless) == 10

    def test_long_keys_are_not_remembered(self) -> None:
        sensitive = SensitiveKeys()
        assert not sensitive("x" * 300)
        assert not sensitive.harmless

    def test_of_a_very_long_key_only_the_start_is_looked_at(self) -> None:
        assert SensitiveKeys()("password " + "x" * 10_000_000)
        assert not SensitiveKeys()("x" * KEY_BOUND + " password")
