"""E-mail addresses and credentials in a text: what is known by its shape.

What belongs here: shapes of words. What does not: numbers (numbers.py), and what is done to what is found (scanner.py).

Every search is linear in the text's length: a pattern begins with fixed characters or with the end of a word that it
cannot begin within, and no two of its repetitions can take the same character.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from streamll.privacy.kinds import REPLACED
from streamll.privacy.numbers import Hit

# What stands before the `@`, in a text that is turned round: so the search begins with the `@`, which is quick.
_LOCAL = re.compile(r"@([\w.+%'\-]+)")
_LOCAL_IN_URL = re.compile(r"(?:@|04%)([\w.+%'\-]+)")
_DOMAIN = re.compile(r"(?:[\w\-]{1,63}\.){1,30}([^\W\d_]{2,63})")
_VERSION = re.compile(r"v?[0-9]+\.[0-9]+\.[0-9]")
_FILES = frozenset(
    "png jpg jpeg gif webp svg bmp ico pdf txt json yaml yml toml xml html css js jsx ts tsx map log csv gz tgz whl jar "
    "exe dll lock conf".split()
)
"""No top-level domains: `icon@2x.png` is a file."""

_LOGIN_IN_URL = re.compile(r"://([^\s/?#\"'<>\\\0]+)@")
_AS_LONG_AS_A_TOKEN = 16

_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PRIVATE_KEY_END = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")


def _has_parts(parts: str) -> bool:
    return parts.count(".") >= 2 or parts.startswith(".eyJ")


def _has_a_figure(token: str) -> bool:
    return any(map(str.isdigit, token)) or (token != token.lower() and token != token.upper())


_SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(shape))
    for kind, shape in (
        ("jwt", r"eyJ(?<![A-Za-z0-9]eyJ)[A-Za-z0-9_\-]{7,}((?:\.[A-Za-z0-9_\-]*){0,4})"),
        ("aws_key", r"A(?:[KSB]IA|CCA)(?<![A-Za-z0-9]A[A-Z]{3})[A-Z0-9]{16}(?![A-Za-z0-9])"),
        ("github_token", r"gh[pousr]_(?<![A-Za-z0-9]gh[pousr]_)[A-Za-z0-9]{30,}"),
        ("github_token", r"github_pat_(?<![A-Za-z0-9]github_pat_)[A-Za-z0-9_]{22,}"),
        ("slack_token", r"xox[abcdeoprs](?<![A-Za-z0-9]xox[a-z])(?:\.xox[a-z])?-[A-Za-z0-9\-]{10,}"),
        ("slack_token", r"xapp-(?<![A-Za-z0-9]xapp-)[A-Za-z0-9\-]{10,}"),
        ("slack_token", r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_\-]{20,}"),
        ("openai_key", r"sk-(?<![A-Za-z0-9]sk-)[A-Za-z0-9_\-]{20,}"),
        ("google_key", r"AIza(?<![A-Za-z0-9]AIza)[A-Za-z0-9_\-]{35}"),
        ("google_key", r"ya29\.(?<![A-Za-z0-9]ya29\.)[A-Za-z0-9_\-]{20,}"),
        ("google_key", r"GOCSPX-(?<![A-Za-z0-9]GOCSPX-)[A-Za-z0-9_\-]{20,}"),
        ("stripe_key", r"[sr]k_(?<![A-Za-z0-9][sr]k_)(?:live|test)_[A-Za-z0-9]{16,}"),
        ("stripe_key", r"whsec_(?<![A-Za-z0-9]whsec_)[A-Za-z0-9+/=]{24,}"),
        ("vendor_token", r"glpat-(?<![A-Za-z0-9]glpat-)[A-Za-z0-9_\-]{20,}"),
        ("vendor_token", r"npm_(?<![A-Za-z0-9]npm_)[A-Za-z0-9]{36}"),
        ("vendor_token", r"pypi-(?<![A-Za-z0-9]pypi-)AgE[A-Za-z0-9_\-]{40,}"),
        ("vendor_token", r"hf_(?<![A-Za-z0-9]hf_)[A-Za-z0-9]{30,}"),
        ("vendor_token", r"SG\.(?<![A-Za-z0-9]SG\.)[A-Za-z0-9_\-]{16,64}\.[A-Za-z0-9_\-]{16,64}"),
        ("vendor_token", r"dop_v1_(?<![A-Za-z0-9]dop_v1_)[a-f0-9]{64}"),
    )
)
"""What tokens look like. What may not stand before one is asked for behind its first characters, since a search for those is
quick."""

# What of those stands before their first `_` or `-`, and what begins with an A.
_BEGINS_BEFORE_LINE = re.compile(r"_(?:(?<=gh[pousr]_)|(?<=hub_)|(?<=[sr]k_)|(?<=sec_)|(?<=npm_)|(?<=hf_)|(?<=dop_))")
_BEGINS_BEFORE_HYPHEN = re.compile(
    r"-(?:(?<=xox[a-z]-)|(?<=xapp-)|(?<=sk-)(?<![A-Za-z0-9]sk-)|(?<=SPX-)|(?<=lpat-)|(?<=pypi-))"
)
_BEGINS_WITH_A = re.compile(r"A(?:[KSB]IA|CCA|Iza)")
_SHORTEST_TOKEN = 16

_PAIR = re.compile(
    r"(?<![\w.\-])([\w.\-]+)=(?:\"([^\"\0]+)\"|'([^'\0]+)'|([^\s&;,\"'<>\\\0]+))",
)
_QUOTED_PAIR = re.compile(
    r"[\"']([\w.\-]{1,64})\\?[\"'] ?: ?(?:\\\"([^\"\0]+)\\\"|\"((?:[^\"\\\0]|\\.)+)\"|'((?:[^'\\\0]|\\.)+)'|([0-9]+))"
)
_LINE = re.compile(r"^[ \t\-]{0,64}([\w.\-]{1,64})[ \t]{0,2}:[ \t]{1,8}([^\s\"'\0]+)[ \t\r]{0,8}$", re.MULTILINE)
_BEARER = re.compile(r"[Bb](?:earer|EARER)\s{1,4}([A-Za-z0-9._~+/\-]{16,}=*)")
_BASIC = re.compile(r"[Uu](?:thorization|THORIZATION)[\"']?\s?[:=]\s?[\"']?[A-Za-z]{1,20} ([^\s\"',;\0]+)")
_COOKIES = re.compile(r"[Cc](?:ookie|OOKIE): ?([^\r\n\0]{2,})")
_NO_SECRETS = frozenset(
    "none null nil true false yes no on off required optional missing invalid expired unset empty basic bearer token "
    "digest redacted masked hidden changed ok failed".split()
)
"""What stands behind the name of a secret and is none."""


def words(text: str, is_secret: Callable[[str], bool]) -> Iterator[Hit]:
    """Find all of them, each only where there is what it cannot do without.

    Args:
        text: Where to look.
        is_secret: Whether a name, as in `name=value`, is that of a secret.
    """
    if "@" in text or "%40" in text:
        yield from emails(text)
        if "://" in text:
            yield from logins_in_urls(text)
    if "=" in text or ":" in text or "earer" in text or "EARER" in text:
        yield from credentials(text, is_secret)
    if may_hold_token(text):
        yield from tokens(text)
    if "PRIVATE KEY" in text:
        yield from private_keys(text)


def emails(text: str) -> Iterator[Hit]:
    """Find e-mail addresses; also with the `@` of a URL, `%40`."""
    for found in (_LOCAL_IN_URL if "%40" in text else _LOCAL).finditer(text[::-1]):
        domain = _DOMAIN.match(text, len(text) - found.start())
        if domain is None or domain[1].lower() in _FILES or _VERSION.match(domain[0]):
            continue
        bare = found[1].rstrip("'.%-")
        # What clones a repository: git@host:path.
        if bare and not (bare == "tig" and text[domain.end() : domain.end() + 1] in (":", "/")):
            yield len(text) - found.start(1) - len(bare), domain.end(), "email"


def logins_in_urls(text: str) -> Iterator[Hit]:
    """Find user and password in URLs, or what stands in their place and is as long as a token."""
    for found in _LOGIN_IN_URL.finditer(text):
        _, colon, password = found[1].partition(":")
        if REPLACED.fullmatch(found[1]):
            continue
        if password or (not colon and len(found[1]) >= _AS_LONG_AS_A_TOKEN):
            yield *found.span(1), "url_credentials"


def private_keys(text: str) -> Iterator[Hit]:
    """Find private keys in PEM, or what there is of one up to the end of the text."""
    at = 0
    while begin := _PRIVATE_KEY.search(text, at):
        end = _PRIVATE_KEY_END.search(text, begin.end())
        at = end.end() if end else len(text)
        yield begin.start(), at, "private_key"


def may_hold_token(text: str) -> bool:
    """Return whether a text holds what a token begins with; a quick look, which nearly every text passes."""
    return len(text) >= _SHORTEST_TOKEN and (
        _BEGINS_BEFORE_LINE.search(text) is not None
        or _BEGINS_BEFORE_HYPHEN.search(text) is not None
        or _BEGINS_WITH_A.search(text) is not None
        or "eyJ" in text
        or "ya29." in text
        or "SG." in text
        or "hooks.slack.com/" in text
    )


def tokens(text: str) -> Iterator[Hit]:
    """Find JSON Web Tokens, and keys whose shape a vendor made to be recognised."""
    for kind, shape in _SHAPES:
        for found in shape.finditer(text):
            if (kind != "jwt" or _has_parts(found[1])) and (kind != "openai_key" or _has_a_figure(found[0])):
                yield *found.span(), kind


def credentials(text: str, is_secret: Callable[[str], bool]) -> Iterator[Hit]:
    """Find values behind the name of a secret: `password=x`, `"token": "x"`, `Authorization: Bearer x`."""
    patterns: list[re.Pattern[str]] = []
    if "=" in text:
        patterns.append(_PAIR)
    if ":" in text:
        if '":' in text or "':" in text or '" :' in text or "' :" in text:
            patterns.append(_QUOTED_PAIR)
        if ": " in text or ":\t" in text:
            patterns.append(_LINE)
    for pattern in patterns:
        for found in pattern.finditer(text):
            group = found.lastindex or 0
            word = found[group].lower().strip("[](){}<>*.")
            if word and word not in _NO_SECRETS and not REPLACED.fullmatch(found[group]) and is_secret(found[1]):
                yield *found.span(group), "credential"
    patterns = []
    if "earer" in text or "EARER" in text:
        patterns.append(_BEARER)
    if "uthorization" in text or "UTHORIZATION" in text:
        patterns.append(_BASIC)
    if "ookie:" in text or "OOKIE:" in text:
        patterns.append(_COOKIES)
    for pattern in patterns:
        for found in pattern.finditer(text):
            if not REPLACED.fullmatch(found[1]):
                yield *found.span(1), "credential"
