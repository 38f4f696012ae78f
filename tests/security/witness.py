"""Looking for a secret in everything that streamll says; and servers that provoke it to speak."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

CORE = "Hu5hHu5h"
USER = f"us/er-{CORE}"
PASSWORD = f"p@ss:w/o?r#d%é {CORE}"
LOGIN = f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}"


class Witness(logging.Handler):
    """Keeps all that it hears and is told, and in the end has not heard the secret."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.said: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(threadName)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))

    def tell(self, *things: object) -> None:
        """Keep what these look like to whoever prints or logs them."""
        for thing in things:
            self.said += [str(thing), repr(thing)]
            if isinstance(thing, BaseException):
                self.said += traceback.format_exception(thing)
                for linked in (thing.__cause__, thing.__context__):
                    if linked is not None:
                        self.tell(linked)

    def look_at_threads(self) -> None:
        """Keep the names of the threads."""
        self.tell(*(thread.name for thread in threading.enumerate()))

    def look_into(self, folder: Path) -> None:
        """Keep the names and the contents of all files in a folder."""
        for path in folder.rglob("*"):
            self.said.append(str(path.relative_to(folder)))
            if path.is_file():
                self.said.append(path.read_bytes().decode("latin-1"))

    def has_heard_no_secret(self) -> None:
        told = [text for text in self.said if CORE.lower() in text.lower()]
        assert not told, told


@contextlib.contextmanager
def witness() -> Iterator[Witness]:
    """Hears all that is logged meanwhile, by whomever and however unimportant; it must have been something, and no secret."""
    root, handler = logging.getLogger(), Witness()
    levels = {name: logging.getLogger(name).level for name in ("", "streamll", "pika", "redis")}
    root.addHandler(handler)
    for name in levels:
        logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    assert handler.said
    handler.has_heard_no_secret()


Answer = Callable[[bytes], bytes | None]
"""What a server answers to bytes; None: it hangs up."""


def refuses(received: bytes) -> bytes | None:
    """Quotes what it does not understand, as old servers of Redis and proxies do."""
    quoted = received.replace(b"\r\n", b" ")
    return b"-ERR unknown command, with args beginning with: " + quoted + b"\r\n"


ANSWERS: dict[str, Answer] = {
    "hangs up": lambda received: None,
    "speaks HTTP": lambda received: b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "echoes": lambda received: received,
    "quotes": refuses,
    "quotes in other words": lambda received: b"-ERR Protocol error: got " + received.replace(b"\r\n", b" ") + b"\r\n",
    "knows nothing": lambda received: b"$-1\r\n" * max(1, received.count(b"*")),
    "noise": lambda received: bytes(range(256)) * 4,
}


@contextlib.contextmanager
def strange_server(answer: Answer, path: str = "") -> Iterator[int]:
    """A server that answers whatever comes in its own way; at a free port of loopback, which is yielded, or at a path."""
    listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(path or ("127.0.0.1", 0))
    listener.listen(16)
    listener.settimeout(0.05)
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.settimeout(0.05)
        with connection, contextlib.suppress(OSError):
            while not over.is_set():
                try:
                    received = connection.recv(65536)
                except TimeoutError:
                    continue
                said = answer(received) if received else None
                if said is None:
                    return
                connection.sendall(said)

    threads: list[threading.Thread] = []

    def accept() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=serve, args=(connection,), name="strange server"))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, name="strange server")
    acceptor.start()
    try:
        yield 0 if path else listener.getsockname()[1]
    finally:
        over.set()
        acceptor.join()
        for thread in threads:
            thread.join()
        listener.close()
