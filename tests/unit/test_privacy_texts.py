"""What is found in texts, wherever it stands and however it is disguised; and never in more than linear time."""

from __future__ import annotations

from collections import Counter
from time import thread_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamll.privacy import SensitiveKeys, detect_email, detect_phone
from streamll.privacy.folding import _BOUND, _folds, folded, places
from streamll.privacy.kinds import BETWEEN, KEEP, MARGIN, STRATEGIES, TEXT_KINDS, read_rules
from streamll.privacy.numbers import is_card, is_iban
from streamll.privacy.pseudonyms import Pseudonyms
from streamll.privacy.scanner import Scanner
from tests.unit.strategies import AROUND, FOUND_IN_TEXTS, private_texts

KEY = "a key of this test alone"
SCANNER = Scanner(read_rules(""), SensitiveKeys())
HASHING = Scanner(read_rules("", "hash"), SensitiveKeys(), Pseudonyms(KEY))
TRUNCATING = Scanner(read_rules("", "truncate"), SensitiveKeys())

EACH = [(kind, AROUND.get(kind, "{}"), found) for kind, all_of_it in FOUND_IN_TEXTS.items() for found in all_of_it]


def redacted(text: str, scanner: Scanner = SCANNER) -> str | None:
    result = scanner.redact(text)
    return text if result is None else result.text


class TestDetect:
    @pytest.mark.parametrize(
        "text",
        [
            *(
                "user@example.com",
                "a@b.co",
                "First.Last+tag@sub.example.co.uk",
                "x_y-z@a-b.museum",
                "o'neil@example.ie",
            ),
            *(
                "mail <user@example.com>.",
                "user%40example.com",
                "a@b@example.com",
                "用户@例子.测试",
                "user@EXAMPLE.COM",
            ),
            *("user@example.com_backup", "'user@example.com'", "user\N{FULLWIDTH COMMERCIAL AT}example.com"),
        ],
    )
    def test_an_address(self, text: str) -> None:
        assert detect_email(text)

    @pytest.mark.parametrize(
        "text",
        [
            *("", "@", "user", "user@", "@example.com", "user@example", "user @example.com", "user@.com", "user@com."),
            *(
                "react@18.2.0",
                "x@v1.2.3-beta.rc",
                "icon@2x.png",
                "git@github.com:a/b.git",
                "u@10.0.0.1",
                ".@example.com",
            ),
        ],
    )
    def test_no_address(self, text: str) -> None:
        assert not detect_email(text)

    @pytest.mark.parametrize(
        "text",
        [
            *("+1234567890", "123-456-7890", "(123) 456-7890", "+44 20 7123 4567", "(123)456-7890", "1-800-555-0199"),
            *("+49 (0)30 12345678", "+1.415.555.2671", "212.555.0142", "212 555 0142", "tel: 5551234567"),
            *("Phone number: 02071234567", "fax=0301234567", "call +1234567890!", "+١٢٣٤٥٦٧٨٩٠", "1 (212) 555-0142"),
        ],
    )
    def test_a_number_to_call(self, text: str) -> None:
        assert detect_phone(text)

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "",
                "+",
                "1769851800",
                "1769851800123",
                "2026-01-31T09:30:00+01:00",
                "2026-01-31 09:30:00",
                "20260131093000",
            ),
            *("1.2.3", "2024.05.13", "10.0.13.7:8080", "550e8400-e29b-41d4-a716-446655440000", "deadbeef1234567890"),
            *(
                "12345678-1234-1234-1234-123456789012",
                "order 1234567890",
                "+3.14159265",
                "+40.7127837-74.0059413/",
                "+1234567",
            ),
            *("job-123-456-7890", "123-456-7890-1", "123.456.7890.1", "112 555 0142", "212 155 0142", "212-555 0142"),
            *(
                "hotel: 5551234567",
                "tel: 123456",
                "phone: 2026-01-31",
                "call 5551234567",
                "+1234567890123456",
                "a+1234567890",
            ),
        ],
    )
    def test_no_number_to_call(self, text: str) -> None:
        assert not detect_phone(text)

    @given(st.integers(10**12, 10**19).map(str))
    def test_digits_alone_are_never_a_number_to_call(self, text: str) -> None:
        assert not detect_phone(text)


class TestSums:
    @given(st.sampled_from(FOUND_IN_TEXTS["card"]), st.integers(1, 9), st.data())
    def test_a_card_with_one_digit_mistyped_is_none(self, card: str, more: int, data: st.DataObject) -> None:
        assert is_card(card)
        place = data.draw(st.sampled_from([place for place, sign in enumerate(card) if sign.isdigit()]))
        assert not is_card(f"{card[:place]}{(int(card[place]) + more) % 10}{card[place + 1 :]}")

    @given(st.sampled_from(FOUND_IN_TEXTS["iban"]), st.integers(1, 9), st.data())
    def test_an_iban_with_one_digit_mistyped_is_none(self, iban: str, more: int, data: st.DataObject) -> None:
        assert is_iban(iban)
        place = data.draw(st.sampled_from([place for place, sign in enumerate(iban) if sign.isdigit()]))
        assert not is_iban(f"{iban[:place]}{(int(iban[place]) + more) % 10}{iban[place + 1 :]}")

    @pytest.mark.parametrize(
        "text", ["GB82WEST1234569876543", "XX82WEST12345698765432", "GB82 WEST 1234 5698 7654 32 X"]
    )
    def test_an_iban_of_another_length_is_none(self, text: str) -> None:
        assert not is_iban(text)

    def test_the_right_sum_is_not_enough(self) -> None:
        assert not is_card("0000000000000000")
        assert redacted("GB82WEST12345698765432X") == "GB82WEST12345698765432X"


class TestFound:
    @pytest.mark.parametrize(("kind", "around", "found"), EACH)
    @pytest.mark.parametrize("place", ["{}", "x {} y", "({})", "é {}…", "\n{}\n", "{},{}"])
    def test_is_replaced_and_nothing_else(self, kind: str, around: str, found: str, place: str) -> None:
        if kind == "credential":
            place = place.translate({ord(sign): " " for sign in "()…"})  # which a password may have in it
        text = place.replace("{}", around)
        assert redacted(text.replace("{}", found)) == text.replace("{}", f"[redacted:{kind}]")

    @given(private_texts)
    @settings(max_examples=80)
    def test_is_gone(self, text: str) -> None:
        result = redacted(text)
        assert result is not None
        for kind, _, found in EACH:
            if kind not in AROUND:
                assert found not in result
        assert SCANNER.redact(result) is None

    @given(private_texts)
    @settings(max_examples=80)
    def test_a_text_in_which_something_is_found_is_one_in_which_something_is_replaced(self, text: str) -> None:
        result = SCANNER.redact(text)
        assert SCANNER.finds(text) == (result is not None)
        assert Counter(kind for _, _, kind in SCANNER.spans(text)) == Counter(result.found if result else ())

    @given(st.lists(private_texts | st.text(), max_size=6))
    @settings(max_examples=80)
    def test_several_texts_at_once_are_the_same_as_one_by_one(self, texts: list[str]) -> None:
        found = {text: SCANNER.redact(text) for text in texts}
        assert SCANNER.redact_each(texts) == (found if any(found.values()) else None)

    def test_a_key_without_its_end_does_not_take_the_texts_behind_it(self) -> None:
        texts = ["-----BEGIN PRIVATE KEY-----\nMIIE", "fine", "bob@example.com"]
        each = SCANNER.redact_each(texts)
        assert each is not None
        left = [found.text if (found := each[text]) else text for text in texts]
        assert left == ["[redacted:private_key]", "fine", "[redacted:email]"]
        each = SCANNER.redact_each([texts[0], "MIIE\n-----END PRIVATE KEY----- bob@example.com", "ann@example.com"])
        assert each is not None
        assert [found and found.text for found in each.values()] == [
            "[redacted:private_key]",
            "MIIE\n-----END PRIVATE KEY----- [redacted:email]",
            "[redacted:email]",
        ]

    @pytest.mark.parametrize(("kind", "around", "found"), [each for each in EACH if each[0] not in AROUND])
    def test_is_found_with_signs_that_take_no_place_and_signs_that_look_alike(
        self, kind: str, around: str, found: str
    ) -> None:
        hidden = "\N{ZERO WIDTH JOINER}".join(found)
        assert redacted(f"a {hidden} b") == f"a [redacted:{kind}] b"
        wide = "".join(chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in found)
        assert redacted(f"a {wide} b") == f"a [redacted:{kind}] b"

    def test_what_overlaps_goes_as_a_whole(self) -> None:
        assert (
            redacted("https://4111111111111111:bob@example.com/") == "https://[redacted:url_credentials]@example.com/"
        )
        assert redacted("password=bob@example.com;x") == "password=[redacted:credential];x"
        assert (
            redacted('"token": "a eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln b"') == '"token": "[redacted:credential]"'
        )
        assert redacted("token=aGVsbG8gd29ybGQ@example.com") == "token=[redacted:credential]"

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic {}"),
            ("authorization: Bearer abc.def-ghi", "authorization: Bearer {}"),
            ("PROXY-AUTHORIZATION=Token abc", "PROXY-AUTHORIZATION=Token {}"),
            ("sent Bearer AbCdEf0123456789==", "sent Bearer {}"),
            ("Set-Cookie: sid=38afes7a8; HttpOnly\r\nx", "Set-Cookie: {}\r\nx"),
            ("COOKIE: a=b", "COOKIE: {}"),
            ("a: 1\n  db_password: hunter2\nb: 2", "a: 1\n  db_password: {}\nb: 2"),
            ("- token:\thunter2 ", "- token:\t{} "),
            ("secret='a b' x", "secret='{}' x"),
            ('{"api_key" : "a\\"b"}', '{"api_key" : "{}"}'),
            ('{"pin_token": 12345}', '{"pin_token": {}}'),
        ],
    )
    def test_what_stands_behind_the_name_of_a_secret(self, text: str, expected: str) -> None:
        made = expected.replace("{}", "[redacted:credential]")
        assert redacted(text) == made
        assert redacted(made) == made

    def test_a_token_may_stand_behind_a_sign(self) -> None:
        for found in (FOUND_IN_TEXTS["jwt"][0], FOUND_IN_TEXTS["github_token"][0], FOUND_IN_TEXTS["aws_key"][0]):
            for before in ("_", "-", "session-", "eyJ-", "/"):
                assert found not in (redacted(before + found) or "")

    def test_what_is_kept_is_not_replaced(self) -> None:
        scanner = Scanner(read_rules("email=keep"), SensitiveKeys())
        assert redacted("bob@example.com +1234567890", scanner) == "bob@example.com [redacted:phone]"
        assert not scanner.finds("bob@example.com")

    def test_names_follow_the_rules_of_keys(self) -> None:
        scanner = Scanner(read_rules(""), SensitiveKeys(also=["badge"], keep=["password"]))
        assert (
            redacted("badge=1x password=2y token_count=3", scanner)
            == "badge=[redacted:credential] password=2y token_count=3"
        )

    @given(st.text())
    @settings(max_examples=80)
    def test_any_text_is_looked_through(self, text: str) -> None:
        for scanner in (SCANNER, HASHING, TRUNCATING):
            scanner.redact(text)


class TestCut:
    @pytest.mark.parametrize(("kind", "around", "found"), EACH)
    def test_what_stands_astride_a_cut_is_found_whole(self, kind: str, around: str, found: str) -> None:
        before, after = around.split("{}")
        text = f"x {before}{found}{after} y"
        start = 2 + len(before)
        for room in range(start + 1, start + len(found) + 1):
            result = SCANNER.redact(text, room)
            assert result is not None
            assert result.text == f"x {before}[redacted:{kind}]"
        assert SCANNER.redact(text, start) is None

    @given(private_texts, st.integers(0, 200))
    @settings(max_examples=80)
    def test_what_is_left_is_what_was_wanted(self, text: str, room: int) -> None:
        result = SCANNER.redact(text, room)
        whole = redacted(text)
        assert whole is not None
        kept = text[:room] if result is None else result.text
        assert kept is not None
        assert whole.startswith(kept)

    def test_of_a_text_without_end_no_more_is_looked_at_than_is_wanted(self) -> None:
        text = "x " * MARGIN + "bob@example.com"
        assert SCANNER.redact(text, 10) is None
        assert SCANNER.redact(text, len(text) - 10) is not None
        key = "-----BEGIN PRIVATE KEY-----" + "x" * 10 * MARGIN + "-----END PRIVATE KEY-----"
        result = SCANNER.redact(f"a {key} b", 40)
        assert result is not None
        assert result.text == "a [redacted:private_key]"


class TestStrategies:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("4111 1111 1111 1111", "…1111"),
            ("+44 20 7123 4567", "…67"),
            ("alice@example.com", "a…@…"),
            ("al%40example.com", "…@…"),
            ("GB82 WEST 1234 5698 7654 32", "GB…"),
            ("AKIA" + "QWERTYUIOPASDF23", "[aws_key…]"),
            ("postgres://app:hunter2@db/app", "postgres://[url_credentials…]@db/app"),
        ],
    )
    def test_truncate_leaves_what_says_nothing_alone(self, text: str, expected: str) -> None:
        assert redacted(text, TRUNCATING) == expected

    @given(private_texts)
    @settings(max_examples=80)
    def test_what_is_left_is_not_found_again(self, text: str) -> None:
        result = redacted(text, TRUNCATING)
        assert result is not None
        assert redacted(result, TRUNCATING) == result

    def test_hash_is_the_same_for_the_same_however_it_is_written(self) -> None:
        def hashed(text: str) -> str:
            result = redacted(text, HASHING)
            assert result is not None
            return result

        assert (
            hashed("Bob@Example.com")
            == hashed("bob%40example.com")
            == f"[email:{Pseudonyms(KEY).of('bob@example.com')}]"
        )
        assert hashed("+44 20 7123 4567") == hashed("+442071234567")
        assert (
            hashed("4111 1111 1111 1111")
            == hashed("4111111111111111")
            == hashed("\N{FULLWIDTH DIGIT FOUR}111-1111-1111-1111")
        )
        assert hashed("bob@example.com") != hashed("bob@example.org")
        assert redacted("bob@example.com", Scanner(read_rules("", "hash"), SensitiveKeys())) == "[redacted:email]"

    def test_drop_leaves_nothing(self) -> None:
        assert redacted("a bob@example.com b", Scanner(read_rules("email=drop"), SensitiveKeys())) is None

    @pytest.mark.parametrize("kind", TEXT_KINDS)
    @pytest.mark.parametrize("strategy", [*STRATEGIES, KEEP])
    def test_each_kind_has_each(self, kind: str, strategy: str) -> None:
        assert read_rules(f" {kind.upper()} = {strategy} ,")[kind] == strategy


class TestFolding:
    @given(st.text())
    @settings(max_examples=80)
    def test_every_sign_that_counts_has_its_place(self, text: str) -> None:
        searched, at = folded(text), places(text)
        assert len(at) == len(searched) + 1
        assert at == sorted(set(at))
        assert at[-1] == len(text)
        assert all(folded(text[at[n]]) == sign for n, sign in enumerate(searched))

    def test_what_was_found_out_is_forgotten_before_it_is_too_much(self) -> None:
        folded("".join(map(chr, range(0x4E00, 0x4E00 + _BOUND + 100))))
        assert len(_folds) <= _BOUND


# What patterns begin with, repeat or end with; a text of nothing else is the worst that they can be given.
PIECES = (
    'a,1,@,a@,a@b,a@b.,@a.b,%40,a%40,eyJ,eyJa.,eyJaaaaaaaaa.,://,://a:,a:b@,=,a=,a=",a=\',password=,\'a\':,"a": "\\,'
    "-----BEGIN PRIVATE KEY-----,-----BEGIN ,sk-,sk-a,ghp_,github_pat_,AKIA,xoxb-,SG.,SG.aaaaaaaaaaaaaaaaaa.,GB82,GB82 ,A1,"
    "AA11 ,1 ,1-,1.,(1,+1,+,4111 ,4111-1111-,1-2-,123-456-,(123) 456-, ,\n,a:,a: ,a: b\n,\t,- ,Bearer ,Authorization: a ,"
    'Cookie: ,tel: 1,phone=1234567 ,\u200b,é,é@,\uff11,_,a_,hooks.slack.com/services/,ya29.,\\,",a.b.c.,1111111,bob@example.com '
).split(",")


class TestTime:
    @pytest.mark.parametrize("length", [1 << 15])
    def test_is_linear_in_the_length_whatever_stands_there(self, length: int) -> None:
        """A second for 32 KiB is more than ten times of what the worst of these takes; the square of it takes hours."""
        for piece in PIECES:
            for text in (piece * (length // len(piece)), "eyJ" + piece * (length // len(piece)) + "@example.com"):
                begun = thread_time()
                SCANNER.redact(text)
                assert thread_time() - begun < 1, repr(piece)

    @pytest.mark.parametrize("piece", ["a", "bob@example.com ", "1-"])
    def test_is_little_for_a_mebibyte(self, piece: str) -> None:
        begun = thread_time()
        SCANNER.finds(piece * ((1 << 20) // len(piece)))
        assert thread_time() - begun < 10

    @given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join), st.sampled_from(PIECES))
    @settings(max_examples=40)
    def test_is_linear_for_pieces_of_pieces_too(self, piece: str, end: str) -> None:
        begun = thread_time()
        SCANNER.redact(piece * ((1 << 14) // len(piece)) + end + BETWEEN)
        assert thread_time() - begun < 1
