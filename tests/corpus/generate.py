"""The corpus: what stands in texts.txt, and what is made up from a seed, the same each time.

What belongs here: texts and what is to be found in them. What does not: finding it (streamll.privacy), and how well that went
(scorecard.py). Check digits are worked out here by themselves, not by the code they are to test.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple
from uuid import UUID

SEED = 20260131
OF_EACH = 120
"""Texts that are made up for each kind, and for each kind of number that is none."""

_TEXTS = Path(__file__).parent / "texts.txt"
_MARK = re.compile(r"⟨([a-z_]+)(?:\|([^⟩]*))?⟩", re.DOTALL)

_ALNUM = string.ascii_letters + string.digits
_BASE64URL = _ALNUM + "-_"


class Sample(NamedTuple):
    """A text, and what is to be found in it: where it begins and ends, and its kind."""

    text: str
    expected: tuple[tuple[int, int, str], ...]


def corpus() -> list[Sample]:
    """Return all samples, in order."""
    random = Random(SEED)  # the same each time
    lines = [line for line in _TEXTS.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    by_hand = [_read(line.replace("\\n", "\n"), random) for line in lines]
    return [*by_hand, *_positives(random), *_negatives(random)]


def _read(marked: str, random: Random) -> Sample:
    text, expected, at = "", [], 0
    for mark in _MARK.finditer(marked):
        text += marked[at : mark.start()]
        kind = mark[1]
        found = mark[2] if mark[2] is not None else MAKERS[kind](random)
        expected.append((len(text), len(text) + len(found), kind))
        text, at = text + found, mark.end()
    return Sample(text + marked[at:], tuple(expected))


def _letters(random: Random, alphabet: str, count: int) -> str:
    return "".join(random.choices(alphabet, k=count))


def _email(random: Random) -> str:
    name = _letters(random, string.ascii_lowercase, random.randint(1, 12))
    more = random.choice(["", ".", "_", "+", "-", "%"])
    tail = _letters(random, string.ascii_lowercase + string.digits, 4) if more else ""
    domain = ".".join(
        _letters(random, string.ascii_lowercase, random.randint(2, 9)) for _ in range(random.randint(1, 3))
    )
    return f"{name}{more}{tail}@{domain}.{random.choice(['com', 'org', 'de', 'co.uk', 'dev', 'museum'])}"


def _phone(random: Random) -> str:
    digits = _letters(random, string.digits, 10)
    area, exchange, line = str(random.randint(200, 999)), str(random.randint(200, 999)), digits[6:]
    return random.choice(
        [
            f"+{random.randint(1, 9)}{digits}",
            f"+{random.randint(20, 99)} {digits[:2]} {digits[2:6]} {digits[6:]}",
            f"+{random.randint(20, 99)}-{digits[:3]}-{digits[3:]}",
            f"({area}) {exchange}-{line}",
            f"{area}-{exchange}-{line}",
            f"1-{area}-{exchange}-{line}",
            f"{area}.{exchange}.{line}",
        ]
    )


def _luhn_digit(digits: str) -> str:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        number = int(digit) * (1 if place % 2 else 2)
        total += number - 9 if number > 9 else number
    return str(-total % 10)


def _card(random: Random) -> str:
    prefix, length = random.choice(
        [
            ("4", 16),
            ("51", 16),
            ("55", 16),
            ("2300", 16),
            ("34", 15),
            ("37", 15),
            ("6011", 16),
            ("3530", 16),
            ("62", 17),
        ]
    )
    digits = prefix + _letters(random, string.digits, length - len(prefix) - 1)
    digits += _luhn_digit(digits)
    separator = random.choice(["", "", " ", "-"])
    if length == 15:
        return separator.join((digits[:4], digits[4:10], digits[10:]))
    if length == 16:
        return separator.join(digits[place : place + 4] for place in range(0, 16, 4))
    return digits


_IBANS = (
    *(("DE", "9" * 18), ("GB", "AAAA" + "9" * 14), ("FR", "9" * 10 + "C" * 11 + "99"), ("NL", "AAAA" + "9" * 10)),
    *(
        ("ES", "9" * 20),
        ("IT", "A" + "9" * 10 + "C" * 12),
        ("PL", "9" * 24),
        ("NO", "9" * 11),
        ("MT", "AAAA" + "9" * 23),
    ),
)
"""Countries, and the shape of what stands behind the check digits: digits, capitals, or either (C)."""


def _iban(random: Random) -> str:
    country, shape = random.choice(_IBANS)
    alphabets = {"9": string.digits, "A": string.ascii_uppercase, "C": string.ascii_uppercase + string.digits}
    account = "".join(random.choice(alphabets[sign]) for sign in shape)
    remainder = 0
    for character in f"{account}{country}00":
        number = int(character, 36)
        remainder = (remainder * (100 if number > 9 else 10) + number) % 97
    plain = f"{country}{98 - remainder:02}{account}"
    return plain if random.random() < 0.5 else " ".join(plain[place : place + 4] for place in range(0, len(plain), 4))


def _jwt(random: Random) -> str:
    parts = (
        f"eyJ{_letters(random, _BASE64URL, 24)}",
        f"eyJ{_letters(random, _BASE64URL, 60)}",
        _letters(random, _BASE64URL, 43),
    )
    return ".".join(parts)


def _vendor(*shapes: tuple[str, str, int]) -> Callable[[Random], str]:
    def make(random: Random) -> str:
        prefix, alphabet, count = random.choice(shapes)
        return prefix + _letters(random, alphabet, count)

    return make


def _private_key(random: Random) -> str:
    name = random.choice(["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
    body = "\n".join(_letters(random, _ALNUM + "+/", 64) for _ in range(random.randint(1, 12)))
    return f"-----BEGIN {name}PRIVATE KEY-----\n{body}\n-----END {name}PRIVATE KEY-----"


_HEX = "0123456789abcdef"
MAKERS: dict[str, Callable[[Random], str]] = {
    "email": _email,
    "phone": _phone,
    "card": _card,
    "iban": _iban,
    "jwt": _jwt,
    "aws_key": _vendor(
        ("AKIA", string.ascii_uppercase + "234567", 16), ("ASIA", string.ascii_uppercase + "234567", 16)
    ),
    "github_token": _vendor(
        ("ghp_", _ALNUM, 36), ("gho_", _ALNUM, 36), ("ghs_", _ALNUM, 36), ("github_pat_", _ALNUM + "_", 82)
    ),
    "slack_token": _vendor(("xoxb-", string.digits, 24), ("xoxp-", _ALNUM, 40), ("xapp-1-", _ALNUM, 40)),
    "openai_key": _vendor(
        ("sk-", _ALNUM, 48), ("sk-proj-", _BASE64URL, 60), ("sk-ant-", _BASE64URL, 80), ("sk-", _HEX, 32)
    ),
    "google_key": _vendor(("AIza", _BASE64URL, 35), ("ya29.", _BASE64URL, 100), ("GOCSPX-", _BASE64URL, 28)),
    "stripe_key": _vendor(("sk_live_", _ALNUM, 24), ("rk_test_", _ALNUM, 99), ("whsec_", _ALNUM, 32)),
    "vendor_token": _vendor(
        ("glpat-", _BASE64URL, 20), ("npm_", _ALNUM, 36), ("hf_", _ALNUM, 34), ("dop_v1_", _HEX, 64)
    ),
    "private_key": _private_key,
}

_AROUND = (
    "{}",
    "{}.",
    "({})",
    "value: {}",
    'could not send to "{}" (retry 3)',
    "a={}, b=2",
    "<{}>",
    "[{}] done\n",
    "première {} é",
    '{{"note":"{}"}}',
)


def _positives(random: Random) -> Iterator[Sample]:
    for kind, make in MAKERS.items():
        for _ in range(OF_EACH):
            before, after = random.choice(_AROUND).replace("{{", "{").replace("}}", "}").split("{}")
            found = make(random)
            yield Sample(before + found + after, ((len(before), len(before) + len(found), kind),))
    for _ in range(OF_EACH):
        login = f"{_letters(random, _ALNUM, 6)}:{_letters(random, _ALNUM + '!$*()_~.-', 12)}"
        scheme = random.choice(["postgres", "redis", "amqp", "https", "mongodb+srv"])
        yield _read(
            f"{scheme}://⟨url_credentials|{login}⟩@{_letters(random, string.ascii_lowercase, 8)}:{random.randint(1, 65535)}/x",
            random,
        )
        name = random.choice(["password", "api_key", "access_token", "client_secret", "DB_PASSWORD", "X-Api-Key"])
        value = _letters(random, _ALNUM + "!$*_~.-", 12)
        shape = random.choice(
            [
                "{n}=⟨credential|{v}⟩",
                '"{n}": "⟨credential|{v}⟩"',
                "?x=1&{n}=⟨credential|{v}⟩&y=2",
                "{n}: ⟨credential|{v}⟩",
            ]
        )
        yield _read(shape.format(n=name, v=value), random)


def _without(found: str, digit: str) -> str:
    """Digits with another last one."""
    return found[:-1] + digit


def _negatives(random: Random) -> Iterator[Sample]:
    for _ in range(OF_EACH):
        number = random.randint
        seconds = number(1_500_000_000, 1_900_000_000)
        card = _card(random)
        texts = (
            f"{seconds} {seconds}{number(0, 999):03} {seconds}{number(0, 10**9 - 1):09}",
            f"20{number(10, 39)}-{number(1, 12):02}-{number(1, 28):02}T{number(0, 23):02}:{number(0, 59):02}:00.{number(0, 999999):06}+0{number(0, 9)}:00",
            f"20{number(10, 39)}{number(1, 12):02}{number(1, 28):02}{number(0, 235959):06}",
            str(UUID(int=random.getrandbits(128), version=4)),
            _letters(random, _HEX, random.choice([8, 16, 32, 40, 64])),
            ".".join(str(number(0, 255)) for _ in range(4)) + f":{number(1, 65535)}",
            f"v{number(0, 30)}.{number(0, 99)}.{number(0, 9999)}-rc.{number(1, 9)}",
            f"transfer {_letters(random, string.digits, 16)}",
            f"order {number(10**7, 10**10)} of {number(1, 999)}",
            f"{random.uniform(-90, 90):.6f}, {random.uniform(-180, 180):.6f}",
            f"1Z{_letters(random, string.ascii_uppercase + string.digits, 16)}",
            f"{_without(card, str((int(card[-1]) + number(1, 9)) % 10))}",
            f"0x{_letters(random, _HEX, 12)} +{number(1, 9999)} -{number(1, 9999)}",
            f"{number(0, 10**6) / 1000:.3f} ms, {number(10**6, 10**9):,} bytes, {number(0, 100)} %",
            f"package{number(1, 9)}@{number(0, 20)}.{number(0, 20)}.{number(0, 99)}",
            f"{_letters(random, string.ascii_lowercase, 5)}@{number(2, 3)}x.png",
        )
        yield from (Sample(text, ()) for text in texts)
