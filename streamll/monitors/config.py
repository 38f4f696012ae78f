"""How a tool is told its options: by a mapping, an options object, or keywords.

What belongs here: that reading. What does not: the options themselves, which stand with their tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from streamll.errors import ConfigurationError
from streamll.options import OptionSet

Options = TypeVar("Options", bound=OptionSet)


def read_options(kind: type[Options], config: Mapping[str, Any] | Options | None, given: Mapping[str, Any]) -> Options:
    """Build a tool's options.

    Args:
        kind: The tool's set of options.
        config: Options by name, or such a set; None for the defaults.
        given: Options by keyword, which win.

    Raises:
        ConfigurationError: When an option is unknown or its value is not allowed.
    """
    if config is None:
        return kind.from_mapping(given)
    if isinstance(config, kind):
        values = {name: getattr(config, name) for name in kind.names()}
    elif isinstance(config, Mapping):
        values = dict(config)
    else:
        raise ConfigurationError(f"{kind.owner}config: must be a dict or {kind.__name__}, not {type(config).__name__}")
    return kind.from_mapping({**values, **given})
