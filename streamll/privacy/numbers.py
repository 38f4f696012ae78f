"""Phone numbers, payment cards and IBANs in a text.

What belongs here: shapes of numbers, and the sums that tell one from a number of that shape. What does not: shapes of
words (patterns.py).

Cards: ISO/IEC 7812 (Luhn), prefixes and lengths as the issuers publish them. IBANs: ISO 13616 (mod 97), lengths as in the
SWIFT registry. Phone numbers: E.164 for those that begin with `+`, the North American form without.

Every shape begins with a digit, a sign or two capitals, and has a bound on its length: the time is linear in the text's
length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

Hit = tuple[int, int, str]
"""Where something begins and ends in a text, and its kind."""

_RUN = re.compile(r"[0-9][0-9 ().+/\-]{5,}[0-9]")
"""What may have a phone or card number in it; nothing else is looked at."""

_PHONE = re.compile(
    r"""
    (?: (?<![A-Za-z0-9+.]) \+ [1-9] (?: \)? [ ./\-]? \(? [0-9] ){6,14} (?![0-9])
    |   (?<![A-Za-z0-9+./\-]) (?: 1[ .\-] )?
        (?: \([0-9]{3}\)[ ]? | (?P<area>[0-9])[0-9]{2}(?P<between>[ .\-]) )
        (?P<exchange>[0-9])[0-9]{2} (?P<last>[ .\-]) [0-9]{4} (?![./][0-9]|-[A-Za-z0-9])
    ) (?![A-Za-z0-9])
    """,
    re.VERBOSE,
)

_SAYS_PHONE = re.compile(
    r"(?<![A-Za-z])(?:(?:tele)?phone|tel|mobile|fax|whatsapp)(?:[ _-]?(?:number|no|nr))?(?:\.|\.?[\"']?\s?[:=])\s?[\"']?[+(]?\Z",
    re.IGNORECASE,
)
"""What stands in front of a number that has no other sign of being one."""
_SAID = 32
_PHONE_DIGITS = range(7, 16)

_HARMLESS = re.compile(
    r"(?:19|20)[0-9]{2}[\-/.][0-9]{1,2}[\-/.][0-9]{1,2}(?: [0-9]{2})?|[0-9]{1,3}(?:\.[0-9]{1,3}){2,3}"
)
"""Dates, with an hour perhaps, IP addresses and versions: most of what looks like more."""
_SHORTEST_CARD = 13

_CARD = re.compile(
    r"""
    (?<![A-Za-z0-9]) (?<![0-9][.\-])
    (?: [0-9]{13,19}
    |   [0-9]{4} ([ \-]) [0-9]{4} \1 [0-9]{4} \1 [0-9]{1,4} (?: \1 [0-9]{3} )?
    |   3[0-9]{3} ([ \-]) [0-9]{6} \2 [0-9]{4,5}
    ) (?![A-Za-z0-9]|[.\-][0-9])
    """,
    re.VERBOSE,
)

_ISSUERS: tuple[tuple[str, str, frozenset[int]], ...] = (
    ("4000", "4999", frozenset({13, 16, 19})),  # Visa
    ("5100", "5599", frozenset({16})),  # Mastercard
    ("2221", "2720", frozenset({16})),
    ("3400", "3499", frozenset({15})),  # American Express
    ("3700", "3799", frozenset({15})),
    ("6011", "6011", frozenset(range(16, 20))),  # Discover
    ("6440", "6599", frozenset(range(16, 20))),
    ("3000", "3059", frozenset(range(14, 20))),  # Diners Club
    ("3095", "3095", frozenset(range(14, 20))),
    ("3600", "3699", frozenset(range(14, 20))),
    ("3800", "3999", frozenset(range(14, 20))),
    ("3528", "3589", frozenset(range(16, 20))),  # JCB
    ("6200", "6299", frozenset(range(16, 20))),  # UnionPay
    ("8100", "8199", frozenset(range(16, 20))),
    ("2200", "2204", frozenset(range(16, 20))),  # Mir
    ("5018", "5018", frozenset(range(13, 20))),  # Maestro
    ("5020", "5020", frozenset(range(13, 20))),
    ("5038", "5038", frozenset(range(13, 20))),
    ("5893", "5893", frozenset(range(13, 20))),
    ("6304", "6304", frozenset(range(13, 20))),
    ("6759", "6759", frozenset(range(13, 20))),
    ("6761", "6763", frozenset(range(13, 20))),
)
"""The first and last prefix of four digits, and the lengths."""

_DOUBLED = str.maketrans("0123456789", "0246813579")
"""The sum of the digits of twice a digit."""

_IBAN = re.compile(r"[A-Z](?<![A-Za-z0-9][A-Z])[A-Z][0-9]{2}(?=((?:[ \-]?[A-Z0-9]){11,30}))")

_IBAN_LENGTHS: dict[str, int] = {
    country: int(length)
    for length, countries in {
        "15": "NO",
        "16": "BE",
        "18": "DK FO FI GL NL FK SD",
        "19": "MK SI",
        "20": "AT BA EE KZ LT LU XK MN",
        "21": "HR LV LI CH",
        "22": "BH BG CR GE DE IE ME RS GB VA",
        "23": "GI IL AE IQ TL OM SO",
        "24": "AD CZ MD PK RO SA SK ES SE TN VG DZ",
        "25": "PT ST LY MR",
        "26": "IS TR",
        "27": "FR GR IT MC SM BI DJ",
        "28": "AL AZ CY DO GT HU LB PL BY SV NI",
        "29": "BR EG PS QA UA",
        "30": "JO KW MU YE",
        "31": "MT SC",
        "32": "LC",
        "33": "RU",
    }.items()
    for country in countries.split()
}
"""How many characters an IBAN has, by its country."""


def numbers(text: str) -> Iterator[Hit]:
    """Find phone numbers, payment cards and IBANs."""
    for run in _RUN.finditer(text):
        if _HARMLESS.fullmatch(run[0]) is None:
            yield from _in_run(text, *run.span())
    yield from ibans(text)


def _in_run(text: str, start: int, end: int) -> Iterator[Hit]:
    # A sign or a bracket may stand before the run, and what stands behind it decides whether it is whole.
    before, behind = max(start - 2, 0), min(end + 2, len(text))
    if end - start >= _SHORTEST_CARD:
        for found in _CARD.finditer(text, start, behind):
            if is_card(found[0]):
                yield *found.span(), "card"
    seen = False
    for found in _PHONE.finditer(text, before, behind):
        if _is_phone(found):
            seen = True
            yield *found.span(), "phone"
    if not seen and _may_be_dialled(text[start:end]) and _SAYS_PHONE.search(text[max(start - _SAID, 0) : start]):
        yield start, end, "phone"


def ibans(text: str) -> Iterator[Hit]:
    """Find IBANs, in one piece or in groups, in capitals."""
    for found in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(found[0][:2])
        if length is None:
            continue
        end, taken = found.end(), 4
        while taken < length and end < found.end(1):
            taken += text[end].isalnum()
            end += 1
        if taken == length and not text[end : end + 1].isalnum() and is_iban(text[found.start() : end]):
            yield found.start(), end, "iban"


def is_card(text: str) -> bool:
    """Return whether digits, with or without spaces and hyphens, are a card's: by issuer, length and Luhn's sum."""
    digits = text.replace(" ", "").replace("-", "")
    if not any(first <= digits[:4] <= last and len(digits) in lengths for first, last, lengths in _ISSUERS):
        return False
    doubled = digits[-2::-2].translate(_DOUBLED)
    return sum(map(int, doubled + digits[-1::-2])) % 10 == 0


def is_iban(text: str) -> bool:
    """Return whether text is an IBAN, by its country's length and its check digits."""
    plain = text.replace(" ", "").replace("-", "")
    if len(plain) != _IBAN_LENGTHS.get(plain[:2]):
        return False
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1


def _is_phone(found: re.Match[str]) -> bool:
    text = found[0]
    if text[0] == "+":
        groups = re.split(r"[ ./()\-]+", text[1:])
        if sum(map(len, groups)) < 8:
            return False
        # What has one dot is a number with a sign.
        return "." not in text or (len(groups) >= 3 and max(map(len, groups)) <= 4)
    area, between, exchange, last = found.group("area", "between", "exchange", "last")
    if area is None:  # it is in brackets
        return True
    if between != last:
        return False
    # Three groups of digits with spaces or dots may be anything, unless they could really be dialled.
    return last == "-" or (area >= "2" and exchange >= "2")


def _may_be_dialled(text: str) -> bool:
    return sum(map(str.isdigit, text)) in _PHONE_DIGITS
