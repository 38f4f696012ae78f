"""One AMQP connection, driven by whichever thread calls it: connect, ask, write, serve, close.

What belongs here: everything that touches pika, and the translation of what went wrong into errors of ours. What does
not: batches, windows and confirms (rabbitmq_transport.py), or what to declare. This file imports pika, so it is imported
when a connection is first opened.

pika's SelectConnection calls back from its loop. Here the loop turns only while one of these methods waits for
something, so that every method reads like a plain call with a deadline. Only documented names of pika are used: the
loop's `poll` and `process_timeouts`, and its interface for input and output services, which hands over the stream that
frames are written to.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401  # for a host's name: Python would import it when it looks for one
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pika
import pika.exceptions
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout
from pika.adapters.utils.nbio_interface import AbstractIOReference, AbstractStreamTransport
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter

from streamll.brokers.rabbitmq_errors import Refused, failure_of
from streamll.delivery.outcome import Failure
from streamll.errors import FatalError, TransportError, UnavailableError
from streamll.runtime.fork import Descriptors, tell_after_fork

if TYPE_CHECKING:
    from pika.channel import Channel

_CLOSE_PATIENCE = 1.0
_STEPS_TO_LET_GO = 10
_BROKER_SAID = re.compile(r"""ConnectionClosedByBroker: \((\d{3})\) (?:'|")(.*)(?:'|")""")


def _cause(error: BaseException) -> BaseException:
    """Find what happened under pika's layers of "failed because"."""
    while True:
        several: tuple[BaseException, ...] = getattr(error, "exceptions", ())
        inner = several[-1] if several else getattr(error, "exception", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            return error
        error = inner


def _translate(error: BaseException, host: str) -> TransportError:
    """Turn why a connection has ended, in pika's words, into an error of ours that names no more than the host."""
    cause = _cause(error)
    text, code = str(cause) or type(cause).__name__, None
    if isinstance(cause, pika.exceptions.ConnectionClosed):
        text, code = f"{cause.reply_text} ({cause.reply_code})", cause.reply_code
    elif found := _BROKER_SAID.search(text):
        # While a connection opens, pika guesses ("probable access denied") and quotes what the broker said.
        text, code = f"{found[2]} ({found[1]})", int(found[1])
    elif isinstance(cause, pika.exceptions.IncompatibleProtocolError):
        text = "the server hung up at once: is it still starting, or no AMQP 0-9-1 server?"
    elif isinstance(cause, pika.exceptions.AuthenticationError):
        return FatalError(f"{host}: the server offers no login by password")
    elif isinstance(cause, AMQPConnectorStackTimeout):
        text = "no answer in time while connecting"
    lasting = failure_of(code, text) is Failure.FATAL or isinstance(cause, ssl.SSLCertVerificationError)
    return FatalError(f"{host}: {text}") if lasting else UnavailableError(f"{host}: {text}")


class _Lookup(AbstractIOReference):
    """A name lookup on a thread of its own; pika's would keep the interpreter alive, and fails while that ends."""

    def __init__(self, services: SelectorIOServicesAdapter, on_done: Callable[[Any], None]) -> None:
        self._services = services
        self._on_done = on_done
        self._cancelled = False

    def start(self, ask: Callable[[], Any]) -> None:
        try:
            threading.Thread(target=self._run, args=(ask,), name="streamll_lookup", daemon=True).start()
        except RuntimeError:
            # The interpreter is ending, or there are too many threads: the deadline gives way to the events.
            self._run(ask)

    def cancel(self) -> bool:
        self._cancelled = True
        return True

    def _run(self, ask: Callable[[], Any]) -> None:
        try:
            result: Any = ask()
        except Exception as error:
            result = error
        self._services.add_callback_threadsafe(partial(self._tell, result))

    def _tell(self, result: Any) -> None:
        if not self._cancelled:
            self._on_done(result)


class _Services(SelectorIOServicesAdapter):
    """pika's input and output services, which also keep the stream, so that whole batches are one write."""

    def __init__(self, loop: Any) -> None:
        # An IOLoop; pika's type stubs make the base class generic, which it is not when it runs.
        super().__init__(loop)
        self.stream: AbstractStreamTransport | None = None
        self.descriptors = Descriptors()

    def getaddrinfo(
        self,
        host: str | bytes | None,
        port: str | bytes | int | None,
        on_done: Callable[[Any], None],
        family: int = 0,
        socktype: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> AbstractIOReference:
        lookup = _Lookup(self, on_done)
        lookup.start(partial(socket.getaddrinfo, host, port, family, socktype, proto, flags))
        return lookup

    def create_streaming_connection(
        self,
        protocol_factory: Any,
        sock: socket.socket,
        on_done: Callable[[Any], None],
        ssl_context: Any = None,
        server_hostname: str | None = None,
    ) -> AbstractIOReference:
        def keep(result: Any) -> None:
            if isinstance(result, tuple):
                self.stream = result[0]
            on_done(result)

        return super().create_streaming_connection(protocol_factory, sock, keep, ssl_context, server_hostname)

    def connect_socket(
        self, sock: socket.socket, resolved_addr: Any, on_done: Callable[[BaseException | None], None]
    ) -> Any:  # of a type that pika does not make known
        self.descriptors.hold(sock.fileno())  # TLS moves it into another socket object, under the same number
        return super().connect_socket(sock, resolved_addr, on_done)


class Connection:
    """An AMQP connection with one channel at a time.

    Args:
        url: The URL for pika, without options of ours.
        host: What errors call the server.
        blocked_timeout: Seconds after which a connection that the broker blocks (memory or disk alarm) is given up.
        name: What the broker's management shows.
        cacertfile, certfile, keyfile: For TLS: the authority to trust instead of the system's; our own certificate.

    Attributes:
        error: Why the connection has ended; None while it has not.
        blocked: What the broker says when it takes no messages for now (memory or disk alarm); else empty.
        channel: The channel; None before there is one.
        refused: Why the broker has closed the channel; None when it has not.
        interrupted: Whether `wake` was called; stays so until the next caller of `run` clears it.
    """

    def __init__(
        self,
        url: str,
        *,
        host: str,
        blocked_timeout: float,
        name: str,
        cacertfile: str = "",
        certfile: str = "",
        keyfile: str = "",
    ) -> None:
        self.error: TransportError | None = None
        self.blocked = ""
        self.channel: Channel | None = None
        self.refused: Refused | None = None
        self.interrupted = False
        self._host = host
        self._pid = os.getpid()
        self._opened = False
        self._parameters = _parameters(url, name, cacertfile, certfile, keyfile)
        if self._parameters.blocked_connection_timeout is None:
            self._parameters.blocked_connection_timeout = blocked_timeout
        self._loop = IOLoop()
        self._loop.activate_poller()
        self._services = _Services(self._loop)
        self._amqp: SelectConnection | None = None
        tell_after_fork(self)

    def after_fork_in_child(self) -> None:
        """It is the parent's, and so is the poller: whatever the child changed there would be changed for the parent."""
        self.error = UnavailableError(f"{self._host}: the connection belongs to the parent process")

    @property
    def is_open(self) -> bool:
        """Whether the connection and its channel are, as far as is known."""
        return self.error is None and self._opened and self.channel is not None and self.channel.is_open

    @property
    def heartbeat(self) -> float:
        """The heartbeat agreed on, in seconds; 0 for none."""
        agreed = self._amqp.params.heartbeat if self._amqp is not None else 0
        return float(agreed) if isinstance(agreed, int) else 0.0

    @property
    def frame_max(self) -> int:
        """The longest frame agreed on, in bytes; 0 for no limit."""
        return int(self._amqp.params.frame_max or 0) if self._amqp is not None else 0

    @property
    def server_properties(self) -> Mapping[str, Any]:
        """What the server says of itself: product, version, capabilities."""
        return (self._amqp.server_properties or {}) if self._amqp is not None else {}

    def connect(self, deadline: float) -> None:
        """Connect, log in and open the virtual host.

        Raises:
            UnavailableError: The server cannot be reached, does not answer by `deadline`, or refuses for now.
            FatalError: Wrong password, no such virtual host, or no permission for it.
        """
        remaining = max(deadline - time.monotonic(), 0.001)
        self._parameters.socket_timeout = remaining
        self._parameters.stack_timeout = remaining
        self._amqp = SelectConnection(
            self._parameters,
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_end,
            on_close_callback=self._on_end,
            custom_ioloop=self._services,
        )
        self._amqp.add_on_connection_blocked_callback(self._on_blocked)
        self._amqp.add_on_connection_unblocked_callback(self._on_unblocked)
        if not self.run(lambda: self._opened, deadline):
            raise self._why("connecting")

    def declare_exchange(self, name: str, kind: str, *, passive: bool, deadline: float) -> None:
        """Declare a durable exchange; `passive` only looks whether there is one.

        This and the other requests open a channel when there is none.

        Raises:
            Refused: The broker closed the channel over it.
            UnavailableError: The connection ended, or there was no answer by `deadline`.
        """
        self._ask(
            lambda channel, done: channel.exchange_declare(name, kind, passive=passive, durable=True, callback=done),
            deadline,
        )

    def declare_queue(self, name: str, arguments: Mapping[str, Any], *, passive: bool, deadline: float) -> None:
        """Declare a durable queue; `passive` only looks whether there is one. Raises as `declare_exchange` does."""
        self._ask(
            lambda channel, done: channel.queue_declare(
                name, passive=passive, durable=True, arguments=dict(arguments), callback=done
            ),
            deadline,
        )

    def try_name(self, name: str, *, deadline: float) -> None:
        """Declare a queue of this connection's own, and delete it: so the permission for the name is asked for.

        Raises as `declare_exchange` does.
        """
        self._ask(
            lambda channel, done: channel.queue_declare(name, exclusive=True, auto_delete=True, callback=done), deadline
        )
        self._ask(lambda channel, done: channel.queue_delete(name, callback=done), deadline)

    def bind(self, queue: str, exchange: str, key: str, *, deadline: float) -> None:
        """Bind a queue to an exchange; once more changes nothing. Raises as `declare_exchange` does."""
        self._ask(lambda channel, done: channel.queue_bind(queue, exchange, key, callback=done), deadline)

    def confirm(
        self,
        on_answer: Callable[[int, bool, bool], None],
        on_return: Callable[[str, str], None],
        *,
        deadline: float,
    ) -> int:
        """Turn publisher confirms on.

        Args:
            on_answer: Called with tag, multiple and whether it is an acknowledgement.
            on_return: Called with the message id and the reason, for each message that no queue takes.
            deadline: When to give up.

        Returns:
            The number of the channel.

        Raises:
            Refused: The broker closed the channel over it.
            UnavailableError: The connection ended, or there was no answer by `deadline`.
        """

        def answered(frame: Any) -> None:
            method = frame.method
            on_answer(method.delivery_tag, method.multiple, isinstance(method, pika.spec.Basic.Ack))

        def returned(_channel: object, method: Any, properties: Any, _body: bytes) -> None:
            on_return(
                properties.message_id or "",
                f"unroutable: exchange {method.exchange!r} has no queue for routing key {method.routing_key!r} "
                f"({method.reply_code} {method.reply_text})",
            )

        channel = self._ask(lambda channel, done: channel.confirm_delivery(answered, done), deadline)
        channel.add_on_return_callback(returned)
        return int(channel.channel_number)

    def publish(self, exchange: str, key: str, body: bytes, *, deadline: float, **properties: Any) -> None:
        """Publish one message, mandatory, in pika's own way; `properties` are its BasicProperties.

        Raises:
            Refused, UnavailableError: No channel could be opened.
        """
        channel = self.channel
        if channel is None or not channel.is_open:
            channel = self._open_channel(deadline)
        channel.basic_publish(exchange, key, body, pika.BasicProperties(**properties), mandatory=True)

    def write(self, data: bytes) -> None:
        """Hand frames to the socket; they leave while `run` serves the connection."""
        if self._services.stream is not None:
            self._services.stream.write(data)

    def run(self, until: Callable[[], bool], deadline: float) -> bool:
        """Serve the connection until `until()` holds.

        Returns:
            True when it holds; False when the deadline has passed, the connection has ended, the broker has closed the
            channel or `wake` was called.
        """
        if until():
            return True
        timer = self._loop.call_later(max(deadline - time.monotonic(), 0.0), _nothing)
        try:
            while self.error is None and self.refused is None and not self.interrupted and time.monotonic() < deadline:
                self._step()
                if until():
                    return True
            return False
        finally:
            self._loop.remove_timeout(timer)

    def serve(self) -> None:
        """Do what waits to be done now (heartbeats, notices of the broker) without waiting for more."""
        self._loop.add_callback(_nothing)
        self._step()

    def wake(self) -> None:
        """End `run` soon; safe from any thread."""
        self.interrupted = True
        self._loop.add_callback_threadsafe(_nothing)

    def close(self, clean: bool) -> None:
        """Give the connection up; never raises. `clean` says goodbye first, and waits for the answer a second at most."""
        if os.getpid() != self._pid:
            return
        with contextlib.suppress(Exception):
            if clean and self._opened and not self._ended() and not self.blocked and self._amqp is not None:
                self.interrupted, self.refused = False, None
                self._amqp.close()
                self.run(self._ended, time.monotonic() + _CLOSE_PATIENCE)
        self._abort()
        with contextlib.suppress(Exception):
            self._loop.close()
        self._services.descriptors.forget()
        if not self._ended():
            self.error = UnavailableError(f"{self._host}: closed")
        self.channel = None

    def _ended(self) -> bool:
        return self.error is not None

    def _open_channel(self, deadline: float) -> Channel:
        """Open a channel, in place of one that was refused."""
        if self._amqp is None or not self._amqp.is_open:
            raise self._why("opening a channel")
        self.refused = None
        channel = self.channel = self._amqp.channel()
        channel.add_on_close_callback(self._on_channel_end)
        if not self.run(lambda: channel.is_open, deadline):
            raise self._why("opening a channel")
        return channel

    def _ask(self, request: Callable[[Channel, Callable[[Any], None]], object], deadline: float) -> Channel:
        channel = self.channel
        if channel is None or not channel.is_open:
            channel = self._open_channel(deadline)
        answers: list[Any] = []
        request(channel, answers.append)
        if not self.run(lambda: bool(answers), deadline):
            raise self._why("waiting for the broker's answer")
        return channel

    def _step(self) -> None:
        try:
            self._loop.poll()
            self._loop.process_timeouts()
        except Exception as error:
            # A frame that cannot be read, or a mistake in a callback: nothing on this connection can be trusted now.
            if self.error is None:
                self.error = UnavailableError(f"{self._host}: {type(error).__name__}")
            self._abort()

    def _abort(self) -> None:
        """Hang up without a word."""
        with contextlib.suppress(Exception):
            if self._amqp is not None and not self._amqp.is_closed:
                if not self._amqp.is_closing:
                    self._amqp.close()  # notes a reason, which pika insists on; what it writes never leaves
                if self._services.stream is not None:
                    self._services.stream.abort()
                for _ in range(_STEPS_TO_LET_GO):
                    self._loop.add_callback(_nothing)
                    self._loop.poll()
                    self._loop.process_timeouts()

    def _why(self, doing: str) -> Exception:
        """What to raise after `run` has returned False."""
        if self.refused is not None:
            return self.refused
        if self.error is not None:
            return self.error
        return UnavailableError(
            f"{self._host}: {'interrupted' if self.interrupted else 'no answer in time'} while {doing}"
        )

    def _on_open(self, _amqp: object) -> None:
        self._opened = True

    def _on_end(self, _amqp: object, error: BaseException) -> None:
        if self.error is None:
            self.error = _translate(error, self._host)

    def _on_channel_end(self, channel: Channel, reason: BaseException) -> None:
        if channel is self.channel and isinstance(reason, pika.exceptions.ChannelClosedByBroker):
            self.refused = Refused(reason.reply_code, reason.reply_text)

    def _on_blocked(self, _amqp: object, frame: Any) -> None:
        self.blocked = f"the broker takes no messages now ({frame.method.reason or 'resource alarm'})"

    def _on_unblocked(self, _amqp: object, _frame: object) -> None:
        self.blocked = ""


def _nothing() -> None:
    """Called by a loop that only had to wake up."""


def _parameters(url: str, name: str, cacertfile: str, certfile: str, keyfile: str) -> pika.URLParameters:
    try:
        parameters = pika.URLParameters(url)
        parameters.connection_attempts = 1
        parameters.retry_delay = 0.0
        parameters.client_properties = {"connection_name": name, **(parameters.client_properties or {})}
        if parameters.ssl_options is not None and (cacertfile or certfile):
            context = ssl.create_default_context(cafile=cacertfile or None)
            if certfile:
                context.load_cert_chain(certfile, keyfile or None)
            parameters.ssl_options = pika.SSLOptions(context)
    except Exception as error:
        # pika quotes what it refuses, which may be a secret: a missing certificate file is named by the system's error.
        detail = f": {error}" if isinstance(error, OSError) else ""
        raise FatalError(f"the URL's options cannot be used ({type(error).__name__}{detail})") from None
    return parameters
