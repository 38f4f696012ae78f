"""E-mail addresses and credentials in a text: what is known by its shape.

What belongs here: shapes of words. What does not: numbers (numbers.py), and what is done to what is found (scanner.py).

Every search is linear in the text's length: a pattern begins with fixed characters or with the end of a word that it
cannot begin within, and no two of its repetitions can take the same character. First it is asked whether the text holds
what the pattern cannot do without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from streamll.privacy.numbers import Hit

# The domain is looked at, not taken: in `a@b@c.com` the second `@` belongs to an address.
_EMAIL = re.compile(r"(?<![\w.+%'\-])[\w.+%'\-]+(?:@|%40)(?=([\w.\-]{1,512}))")
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

_JWT = re.compile(r"eyJ(?<![A-Za-z0-9_\-]eyJ)[A-Za-z0-9_\-]{7,}((?:\.[A-Za-z0-9_\-]*){1,4})")


def _has_a_figure(token: str) -> bool:
    return any(map(str.isdigit, token)) or (token != token.lower() and token != token.upper())


_SHAPES: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (kind, tuple(needles.split()), re.compile(shape))
    for kind, needles, shape in (
        (
            "aws_key",
            "AKIA ASIA ABIA ACCA",
            r"A[KSBC][IC]A(?<![A-Za-z0-9]A[KSBC][IC]A)[A-Z0-9]{16}(?![A-Za-z0-9])",
        ),
        ("github_token", "ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_(?<![A-Za-z0-9]gh[pousr]_)[A-Za-z0-9]{30,}"),
        ("github_token", "github_pat_", r"github_pat_(?<![A-Za-z0-9]github_pat_)[A-Za-z0-9_]{22,}"),
        ("slack_token", "xox", r"xox[abcdeoprs](?<![A-Za-z0-9]xox[a-z])(?:\.xox[a-z])?-[A-Za-z0-9\-]{10,}"),
        ("slack_token", "xapp-", r"xapp-(?<![A-Za-z0-9]xapp-)[A-Za-z0-9\-]{10,}"),
        ("slack_token", "hooks.slack.com/", r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_\-]{20,}"),
        ("openai_key", "sk-", r"sk-(?<![A-Za-z0-9]sk-)[A-Za-z0-9_\-]{20,}"),
        ("google_key", "AIza", r"AIza(?<![A-Za-z0-9]AIza)[A-Za-z0-9_\-]{35}"),
        ("google_key", "ya29.", r"ya29\.(?<![A-Za-z0-9]ya29\.)[A-Za-z0-9_\-]{20,}"),
        ("google_key", "GOCSPX-", r"GOCSPX-(?<![A-Za-z0-9]GOCSPX-)[A-Za-z0-9_\-]{20,}"),
        ("stripe_key", "sk_ rk_", r"[sr]k_(?<![A-Za-z0-9][sr]k_)(?:live|test)_[A-Za-z0-9]{16,}"),
        ("stripe_key", "whsec_", r"whsec_(?<![A-Za-z0-9]whsec_)[A-Za-z0-9+/=]{24,}"),
        ("vendor_token", "glpat-", r"glpat-(?<![A-Za-z0-9]glpat-)[A-Za-z0-9_\-]{20,}"),
        ("vendor_token", "npm_", r"npm_(?<![A-Za-z0-9]npm_)[A-Za-z0-9]{36}"),
        ("vendor_token", "pypi-", r"pypi-(?<![A-Za-z0-9]pypi-)AgE[A-Za-z0-9_\-]{40,}"),
        ("vendor_token", "hf_", r"hf_(?<![A-Za-z0-9]hf_)[A-Za-z0-9]{30,}"),
        ("vendor_token", "SG.", r"SG\.(?<![A-Za-z0-9]SG\.)[A-Za-z0-9_\-]{16,64}\.[A-Za-z0-9_\-]{16,64}"),
        ("vendor_token", "dop_v1_", r"dop_v1_(?<![A-Za-z0-9]dop_v1_)[a-f0-9]{64}"),
    )
)
"""What vendors' keys look like: kind, what the text must hold (one of them), and the shape."""
_SHORTEST_KEY = 16

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


def emails(text: str) -> Iterator[Hit]:
    """Find e-mail addresses; also with the `@` of a URL, `%40`."""
    if "@" not in text and "%40" not in text:
        return
    for found in _EMAIL.finditer(text):
        domain = _DOMAIN.match(found[1])
        if domain is None or domain[1].lower() in _FILES or _VERSION.match(domain[0]):
            continue
        local = found[0].removesuffix("%40").rstrip("@")
        bare = local.lstrip("'.%-")
        end = found.end() + domain.end()
        if bare and not (bare == "git" and text[end : end + 1] == ":"):
            yield found.start() + len(local) - len(bare), end, "email"


def logins_in_urls(text: str) -> Iterator[Hit]:
    """Find user and password in URLs, or what stands in their place and is as long as a token."""
    if "://" not in text:
        return
    for found in _LOGIN_IN_URL.finditer(text):
        _, colon, password = found[1].partition(":")
        if password or (not colon and len(found[1]) >= _AS_LONG_AS_A_TOKEN):
            yield *found.span(1), "url_credentials"


def private_keys(text: str) -> Iterator[Hit]:
    """Find private keys in PEM, or what there is of one up to the end of the text."""
    if "PRIVATE KEY" not in text:
        return
    at = 0
    while begin := _PRIVATE_KEY.search(text, at):
        end = _PRIVATE_KEY_END.search(text, begin.end())
        at = end.end() if end else len(text)
        yield begin.start(), at, "private_key"


def tokens(text: str) -> Iterator[Hit]:
    """Find JSON Web Tokens, and keys whose shape a vendor made to be recognised."""
    if len(text) < _SHORTEST_KEY:
        return
    if "eyJ" in text:
        for found in _JWT.finditer(text):
            if found[1].count(".") >= 2 or found[1].startswith(".eyJ"):
                yield *found.span(), "jwt"
    for kind, needles, shape in _SHAPES:
        for needle in needles:
            if needle in text:
                break
        else:
            continue
        for found in shape.finditer(text):
            if kind != "openai_key" or _has_a_figure(found[0]):
                yield *found.span(), kind


def credentials(text: str, is_secret: Callable[[str], bool]) -> Iterator[Hit]:
    """Find values behind the name of a secret: `password=x`, `"token": "x"`, `Authorization: Bearer x`.

    Args:
        text: Where to look.
        is_secret: Whether a name is that of a secret.
    """
    patterns: list[re.Pattern[str]] = []
    if "=" in text:
        patterns.append(_PAIR)
    if ":" in text:
        if '":' in text or "':" in text or '" :' in text or "' :" in text:
            patterns.append(_QUOTED_PAIR)
        patterns.append(_LINE)
    for pattern in patterns:
        for found in pattern.finditer(text):
            group = found.lastindex or 0
            word = found[group].lower().strip("[](){}<>*.")
            if word and word not in _NO_SECRETS and not word.startswith("redacted:") and is_secret(found[1]):
                yield *found.span(group), "credential"
    if "earer" in text or "EARER" in text:
        for found in _BEARER.finditer(text):
            yield *found.span(1), "credential"
    if "uthorization" in text or "UTHORIZATION" in text:
        for found in _BASIC.finditer(text):
            yield *found.span(1), "credential"
    if "ookie:" in text or "OOKIE:" in text:
        for found in _COOKIES.finditer(text):
            yield *found.span(1), "credential"
