"""What commands read off a URL themselves; whoever is made from it reads it again, and whole."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from streamll.errors import ConfigurationError


def query_of(url: str) -> dict[str, str]:
    """Return the options in a URL.

    Raises:
        ConfigurationError: When it is no URL.
    """
    try:
        return dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    except ValueError:
        raise ConfigurationError("the URL's host is not well formed (an IPv6 address needs its brackets)") from None
