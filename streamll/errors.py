"""Every error that streamll raises, as one tree.

What belongs here: the classes, and for each the sentence that says when it is raised. What does not: the errors of
redis, pika or the operating system, which are translated in the one file of the sink that met them.
"""

from __future__ import annotations


class StreamllError(Exception):
    """The base of all errors of streamll; never raised itself."""


class ConfigurationError(StreamllError, ValueError):
    """Raised when an option, a URL or a combination of both cannot be used; names the option, the value and the remedy."""


class LifecycleError(StreamllError, RuntimeError):
    """Raised when a sink is used out of its order: started after it was stopped, or flushed on its own worker thread."""


class BufferFullError(StreamllError):
    """Raised by `emit` and `handle_event` when the buffer is full and `buffer_overflow_strategy` is `raise_error`."""


class DecodeError(StreamllError, ValueError):
    """Raised when bytes are not an event that this version can read; the message says what is wrong with them."""


class TransportError(StreamllError):
    """The base of what a transport raises when it cannot open its connection; its text never holds a credential."""


class UnavailableError(TransportError):
    """Raised when a broker cannot be reached or cannot serve now; trying again later may succeed."""


class FatalError(TransportError):
    """Raised when a broker refuses for a reason that waiting does not mend: wrong password, no permission, wrong type."""


class ConsumerError(StreamllError):
    """Raised when a consumer cannot reach or read its source; its text never holds a credential."""
