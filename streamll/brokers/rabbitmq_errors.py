"""What AMQP's reply codes mean to a sink."""

from __future__ import annotations

from streamll.delivery.outcome import Failure

CONTENT_TOO_LARGE = 311
ACCESS_REFUSED = 403
NOT_FOUND = 404
PRECONDITION_FAILED = 406
COMMAND_INVALID = 503
NOT_ALLOWED = 530
NOT_IMPLEMENTED = 540

_LASTING = frozenset({ACCESS_REFUSED, COMMAND_INVALID, NOT_ALLOWED, NOT_IMPLEMENTED})
_YET_TEMPORARY = ("limit", "is down", "not running", "being deleted")


class Refused(Exception):
    """Raised when the broker closes a channel over a request on it; the connection stays open.

    Attributes:
        code: AMQP's reply code, such as 404.
        text: The broker's sentence.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code
        self.text = text


def failure_of(code: int | None, text: str = "") -> Failure:
    """Say which kind of failure a reply code stands for.

    403 (access refused), 503 (such as an unknown exchange type), 530 (no such virtual host, or not allowed there) and 540
    (not implemented) do not mend themselves, unless the text speaks of a limit or of something that is down for now. 311
    and 406 refuse a message for what it is. All others may pass: 320 (an operator's doing), 404, 541, and no code at all.
    """
    if code in _LASTING:
        return Failure.UNAVAILABLE if any(words in text for words in _YET_TEMPORARY) else Failure.FATAL
    return Failure.REJECTED if code in (CONTENT_TOO_LARGE, PRECONDITION_FAILED) else Failure.UNAVAILABLE
