"""What a Redis error means for the events: try again, halve the batch, or stop and say so.

What belongs here: the one table from Redis' and redis-py's errors to `Failure`, and the words for people. Errors are
told apart by the code that the server sends, since redis-py's classes differ between its versions.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from dataclasses import dataclass

from streamll.delivery.outcome import Failure
from streamll.errors import FatalError, TransportError, UnavailableError

_UNAVAILABLE, _FATAL, _REJECTED = Failure.UNAVAILABLE, Failure.FATAL, Failure.REJECTED

# The code, what it does to the batch, and what a person can do about it.
_BY_CODE: dict[str, tuple[Failure, str]] = {
    "LOADING": (_UNAVAILABLE, "the server is loading its data"),
    "BUSY": (_UNAVAILABLE, "a script keeps the server busy; SCRIPT KILL ends it"),
    "READONLY": (_UNAVAILABLE, "this is a replica; send to the primary, or use redis+sentinel:// to follow it"),
    "OOM": (_UNAVAILABLE, "the server's memory is full; raise maxmemory or shorten streams (max_stream_length)"),
    "CLUSTERDOWN": (_UNAVAILABLE, "the cluster does not serve this slot now"),
    "MASTERDOWN": (_UNAVAILABLE, "the replica has lost its primary"),
    "TRYAGAIN": (_UNAVAILABLE, "the cluster is moving this slot"),
    "MOVED": (_UNAVAILABLE, "another node serves this slot; use redis+cluster:// to follow it"),
    "ASK": (_UNAVAILABLE, "the cluster is moving this slot; use redis+cluster:// to follow it"),
    "MISCONF": (_UNAVAILABLE, "the server cannot write its data to disk and accepts no writes; see its log"),
    "NOREPLICAS": (_UNAVAILABLE, "the server has too few replicas to accept writes (min-replicas-to-write)"),
    "NOSCRIPT": (_UNAVAILABLE, "the server forgets the script again and again"),
    "EXECABORT": (_UNAVAILABLE, "the server discarded the transaction"),
    "NOAUTH": (_FATAL, "the server wants a password; put user and password in the URL"),
    "WRONGPASS": (_FATAL, "user or password is wrong"),
    "NOPERM": (_FATAL, "the user may not do this; see its ACL"),
    "WRONGTYPE": (_FATAL, "the key {stream} or its dead letters exist and are no stream; choose another key"),
    "DENIED": (_FATAL, "the server is in protected mode and accepts local clients only"),
    "CROSSSLOT": (_FATAL, "the server is a cluster and the keys are in different slots; use redis+cluster://"),
}

# The same for errors whose code is just ERR, by what their text contains, in lower case.
_BY_TEXT: tuple[tuple[str, str, tuple[Failure, str]], ...] = (
    ("max number of clients", "ERR", (_UNAVAILABLE, "the server has no place for another client (maxclients)")),
    ("executing the script can't", "NOPERM", _BY_CODE["NOPERM"]),
    ("operation not permitted", "NOAUTH", _BY_CODE["NOAUTH"]),
    ("invalid password", "WRONGPASS", _BY_CODE["WRONGPASS"]),
    ("without any password configured", "ERR", (_FATAL, "the server has no password; leave it out of the URL")),
    ("no password is set", "ERR", (_FATAL, "the server has no password; leave it out of the URL")),
    ("number of arguments for 'auth'", "ERR", (_FATAL, "the server is older than user names; leave it out of the URL")),
    ("db index", "ERR", (_FATAL, "the server has no database of that number")),
    ("invalid database", "ERR", (_FATAL, "the server has no database of that number")),
    ("select is not allowed in cluster mode", "ERR", (_FATAL, "a cluster has database 0 only")),
    (
        "unknown command",
        "UNKNOWN",
        (_FATAL, "the server does not know or not allow the command; streamll needs Redis 5"),
    ),
    ("cluster support disabled", "ERR", (_FATAL, "the server is no cluster; use redis:// instead of redis+cluster://")),
    # What the server says to a long request of a client that has not logged in.
    ("unauthenticated", "NOAUTH", _BY_CODE["NOAUTH"]),
    (
        "protocol error",
        "PROTOCOL",
        (_REJECTED, "the request has a part longer than the server takes (proto-max-bulk-len)"),
    ),
    ("wait cannot be used with replica", "READONLY", _BY_CODE["READONLY"]),
)

# What servers and proxies that are not Redis itself say of a request or a value that is too long for them.
_ABOUT_LENGTH = ("too large", "too big", "too long", "exceed", " size")

NOT_PERMITTED = frozenset({"NOPERM", "UNKNOWN"})
"""The codes of a command that may not be used: by the user's ACL, or because it goes by no name."""

# redis-py cuts the code off the texts of the errors that it has a class for.
_CODE_OF_CLASS = {
    "BusyLoadingError": "LOADING",
    "ReadOnlyError": "READONLY",
    "OutOfMemoryError": "OOM",
    "NoScriptError": "NOSCRIPT",
    "NoPermissionError": "NOPERM",
    "ExecAbortError": "EXECABORT",
    "MovedError": "MOVED",
    "AskError": "ASK",
    "TryAgainError": "TRYAGAIN",
    "ClusterDownError": "CLUSTERDOWN",
    "MasterDownError": "MASTERDOWN",
    "ClusterCrossSlotError": "CROSSSLOT",
}


@dataclass(frozen=True)
class Trouble:
    """What went wrong, as far as it matters to the events.

    Attributes:
        code: The server's word for it (`OOM`); UNKNOWN for a command it does not know, PROTOCOL for a request it could
            not read, ERR for the rest, empty when it is not the server who says it.
        failure: What to do with the batch.
        text: One line for people.
    """

    code: str
    failure: Failure
    text: str

    def as_error(self) -> TransportError:
        """The exception to raise where there is no batch to speak of."""
        return FatalError(self.text) if self.failure is Failure.FATAL else UnavailableError(self.text)


def trouble_of(error: BaseException | bytes | str, stream: str = "", secrets: Iterable[str] = ()) -> Trouble:
    """Tell what an error means.

    Args:
        error: An exception of redis-py or of the operating system, or an error text that the script returned.
        stream: The stream's key, for messages.
        secrets: What it must not repeat, however it quotes that.
    """
    if isinstance(error, (bytes, str)):
        return _of_reply(error if isinstance(error, str) else error.decode("utf-8", "replace"), stream)
    name = type(error).__name__
    text = _line(_without(str(error), secrets))
    if name == "AuthenticationError":
        code = "NOAUTH" if "required" in text.lower() else "WRONGPASS"
        return _of_reply(text if _by_text(text) else f"{code} {text}", stream)
    if name in _CODE_OF_CLASS:
        return _of_reply(f"{_CODE_OF_CLASS[name]} {text}", stream)
    if name == "TimeoutError" or isinstance(error, TimeoutError):
        return Trouble("", _UNAVAILABLE, text or "no answer in time")
    if any(kind.__name__ == "ResponseError" for kind in type(error).__mro__):
        return _of_reply(text, stream)
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Trouble("", _FATAL, f"{text}: the server's certificate is not trusted; see ssl_ca_certs")
    if isinstance(cause, PermissionError):
        return Trouble("", _FATAL, f"{text}: this process may not use the socket")
    known = _by_text(text)
    if known is not None and known[0] != "PROTOCOL":  # here it would be redis-py that cannot read what came
        return _of_reply(text, stream)
    return Trouble("", _UNAVAILABLE, text or name)


def _of_reply(text: str, stream: str) -> Trouble:
    # An unknown command is quoted with its arguments: an event, or a password. A transaction quotes what it met.
    text = _line(text.removeprefix("-").partition(", with args beginning with")[0])
    text = text.partition("Transaction discarded because of: ")[2] or text
    known = _by_text(text)
    if known is not None:
        code, (failure, remedy) = known
        return Trouble(code, failure, f"{text}: {remedy}")
    code = text.partition(" ")[0]
    if code in _BY_CODE:
        failure, remedy = _BY_CODE[code]
        return Trouble(code, failure, f"{text}: {remedy.format(stream=stream or 'of the stream')}")
    # Scripts of older servers put the error of a command behind their own words.
    for word in text.replace(":", " ").split():
        inner = word.removeprefix("-")
        if word.startswith("-") and inner in _BY_CODE:
            failure, remedy = _BY_CODE[inner]
            return Trouble(inner, failure, f"{text}: {remedy.format(stream=stream or 'of the stream')}")
    # Redis looks at nothing in an event but its length. So what else is wrong would be wrong with every event, and
    # taking it for poison would cost them all, one by one.
    failure = _REJECTED if any(word in text.lower() for word in _ABOUT_LENGTH) else _FATAL
    return Trouble(code if code.isupper() else "ERR", failure, text)


def _by_text(text: str) -> tuple[str, tuple[Failure, str]] | None:
    lowered = text.lower()
    for part, code, meaning in _BY_TEXT:
        if part in lowered:
            return code, meaning
    return None


def _without(text: str, secrets: Iterable[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        for spelled in (secret, ascii(secret)[1:-1], repr(secret.encode())[2:-1]):
            text = text.replace(spelled, "***")
    return text


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
