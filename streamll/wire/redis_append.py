"""How a producer's entries are appended to a stream, each once: the script, and the commands of a transaction.

What belongs here: requests, as arguments or as the bytes that go to a server; pure functions. What does not: fields and
keys (redis.py), which events share an entry (frame.py), or what follows from the answers (sinks/).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, repeat

from streamll.wire.redis import (
    FENCE_TTL,
    FIELD_COUNT,
    FIELD_EVENT,
    FIELD_EVENTS,
    FIELD_PRODUCER,
    FIELD_REASON,
    FIELD_SEQ,
    Argument,
    Keys,
)

BEHIND = b"BEHIND"
"""What the script answers when the number that must precede the batch is not there."""

ASTRIDE = b"ASTRIDE"
"""What it answers when a frame has some events that are in the stream and some that are not."""

FENCE_SCRIPT = b"""\
local stream, fence, dead_letters = KEYS[1], KEYS[2], KEYS[3]
local producer, after, trim, limit, ttl = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local first, step = 6, 4
local function last_of(i)
  if ARGV[i + 1] == '1' then return ARGV[i] end
  return string.format('%.0f', ARGV[i] + ARGV[i + 1] - 1)
end
local stored = redis.call('GET', fence) or '0'
local at = tonumber(stored)
if not at then return {0, 'WRONGTYPE the fence holds no number'} end
if at < after then return {at, 'BEHIND'} end
if #ARGV < first then return {at} end
for i = first, #ARGV, step do
  if tonumber(ARGV[i]) > at then break end
  if tonumber(last_of(i)) > at then return {at, 'ASTRIDE'} end
end

-- The fence moves first, so that a user who may not write it, or a full memory, stops us before anything is in the
-- stream. It is written even when nothing is new: that renews its time, and gives WAIT a write to wait for.
local last = last_of(#ARGV - 3)
if tonumber(last) <= at then
  redis.call('SET', fence, stored, 'PX', ttl)
  return {at}
end
redis.call('SET', fence, last, 'PX', ttl)

local trims = 0
if limit ~= '0' then
  for i = #ARGV - 3, first, -step do
    if ARGV[i + 3] == '' then trims = i break end
  end
end
local done = stored
for i = first, #ARGV, step do
  local seq, count, payload, reason = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if tonumber(seq) > at then
    local reply
    if reason ~= '' then
      if limit == '0' then
        reply = redis.pcall('XADD', dead_letters, '*',
                            'event', payload, 'producer', producer, 'seq', seq, 'reason', reason)
      else
        reply = redis.pcall('XADD', dead_letters, 'MAXLEN', '~', limit, '*',
                            'event', payload, 'producer', producer, 'seq', seq, 'reason', reason)
      end
    elseif count ~= '1' then
      if i == trims then
        reply = redis.pcall('XADD', stream, 'MAXLEN', trim, limit, '*',
                            'events', payload, 'producer', producer, 'seq', seq, 'count', count)
      else
        reply = redis.pcall('XADD', stream, '*',
                            'events', payload, 'producer', producer, 'seq', seq, 'count', count)
      end
    elseif i == trims then
      reply = redis.pcall('XADD', stream, 'MAXLEN', trim, limit, '*',
                          'event', payload, 'producer', producer, 'seq', seq)
    else
      reply = redis.pcall('XADD', stream, '*', 'event', payload, 'producer', producer, 'seq', seq)
    end
    if type(reply) == 'table' and reply.err then
      redis.call('SET', fence, done, 'PX', ttl)
      return {tonumber(done), reply.err}
    end
    done = last_of(i)
  end
end
return {tonumber(done)}
"""
"""KEYS: stream, fence, dead-letter stream. ARGV: producer, the number that must precede, `~` or `=`, the longest
stream (0: any), the fence's life in milliseconds, then for each entry: the number of its first event, how many events it
has, its bytes, and why it is a dead letter (empty: it is none). Entries come in the order of their numbers.

Answers the fence as it is now and, when it stopped early, why: BEHIND, ASTRIDE, or the error of the XADD that failed.
"""


_PIECE = 500  # events that are packed at once


@cache
def fence_script_sha() -> bytes:
    """The name under which a server keeps the script."""
    from hashlib import sha1  # only a writer needs it, and it takes three milliseconds to import

    return sha1(FENCE_SCRIPT, usedforsecurity=False).hexdigest().encode()


@dataclass(frozen=True)
class Trim:
    """How long a stream may get: `limit` entries (0: any length), approximately unless `exact`."""

    limit: int
    exact: bool = False

    @property
    def sign(self) -> bytes:
        """The word of Redis for it."""
        return b"=" if self.exact else b"~"


@dataclass(frozen=True)
class Items:
    """What becomes entries of a stream: a list for each thing that is known of them, in the order of their numbers.

    Attributes:
        numbers: The number of each; of a frame: of its first event.
        payloads: Its bytes.
        reasons: Why it is a dead letter, empty where it is none; an empty list: none of them is.
        counts: How many events are in it; an empty list: one in each.
    """

    numbers: Sequence[int]
    payloads: Sequence[bytes]
    reasons: Sequence[str] = ()
    counts: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def between(self, start: int, end: int) -> Items:
        """Return those from one place to before another."""
        here = slice(start, end)
        return Items(self.numbers[here], self.payloads[here], self.reasons[here], self.counts[here])


def script_command(
    keys: Keys, producer: bytes, after: int, trim: Trim, items: Items, whole: bool = False
) -> tuple[Argument, ...]:
    """Build the command that appends entries by the script.

    Args:
        keys: Where to.
        producer: The producer's id.
        after: The number that must precede the entries.
        trim: How long the stream may get.
        items: The entries.
        whole: Send the script itself, which makes the server remember it, instead of its hash.
    """
    head = (b"EVAL", FENCE_SCRIPT) if whole else (b"EVALSHA", fence_script_sha())
    ttl = int(FENCE_TTL * 1000)
    reasons = [reason.encode("utf-8", "replace") for reason in items.reasons] or repeat(b"")
    rows: Iterable[tuple[Argument, ...]] = zip(
        items.numbers, items.counts or repeat(1), items.payloads, reasons, strict=False
    )
    told = chain.from_iterable(rows)
    return (*head, 3, keys.stream, keys.fence, keys.dead_letters, producer, after, trim.sign, trim.limit, ttl, *told)


def xadd_commands(keys: Keys, producer: bytes, trim: Trim, items: Items) -> list[tuple[Argument, ...]]:
    """Build the XADD of each entry, for the way without a script; arguments as in `script_command`."""
    commands: list[tuple[Argument, ...]] = []
    rows = zip(items.numbers, items.counts or repeat(1), items.payloads, items.reasons or repeat(""), strict=False)
    last = max((place for place in range(len(items)) if not (items.reasons and items.reasons[place])), default=-1)
    for place, (seq, count, payload, reason) in enumerate(rows):
        limit = (b"MAXLEN", trim.sign, trim.limit) if trim.limit and place == last else ()
        named = (FIELD_PRODUCER, producer, FIELD_SEQ, seq)
        if reason:
            limit = (b"MAXLEN", b"~", trim.limit) if trim.limit else ()
            why = reason.encode("utf-8", "replace")
            fields: tuple[Argument, ...] = (FIELD_EVENT, payload, *named, FIELD_REASON, why)
            commands.append((b"XADD", keys.dead_letters, *limit, b"*", *fields))
        elif count > 1:
            commands.append((b"XADD", keys.stream, *limit, b"*", FIELD_EVENTS, payload, *named, FIELD_COUNT, count))
        else:
            commands.append((b"XADD", keys.stream, *limit, b"*", FIELD_EVENT, payload, *named))
    return commands


class EventPacker:
    """Packs the XADDs of events that each become an entry of the stream: as `xadd_commands`, but all in one step.

    Packing them with hiredis, one by one, took about seven times as long, and with a loop in Python twice as long.

    Args:
        keys: Where to.
        producer: The producer's id.
        trim: How long the stream may get.
    """

    def __init__(self, keys: Keys, producer: bytes, trim: Trim) -> None:
        limit: tuple[Argument, ...] = (b"MAXLEN", trim.sign, trim.limit) if trim.limit else ()
        self._plain = _opening(b"XADD", keys.stream, b"*", FIELD_EVENT, more=5)
        self._trimming = _opening(b"XADD", keys.stream, *limit, b"*", FIELD_EVENT, more=5)
        self._middle = _words(FIELD_PRODUCER, producer, FIELD_SEQ)

    def pack(self, numbers: Sequence[int], payloads: Sequence[bytes]) -> list[bytes]:
        """Return the requests, of which the last one trims, as bytes to be sent one after the other.

        Args:
            numbers: The events' numbers, rising; at least one.
            payloads: Their bytes.
        """
        # In pieces that a processor's cache holds: with 5,000 events as one, sending took twice as long.
        pieces = [slice(start, start + _PIECE) for start in range(0, len(numbers), _PIECE)]
        last = pieces[-1]
        return [self._pack(numbers[piece], payloads[piece], piece is last) for piece in pieces]

    def _pack(self, numbers: Sequence[int], payloads: Sequence[bytes], trims: bool) -> bytes:
        templates: list[bytes] = []
        start, end = 0, len(numbers)
        while start < end:  # once for each length that the numbers have
            digits = len(str(numbers[start]))
            stop = bisect_left(numbers, 10**digits, start)
            rest = b"$%%d\r\n%%b\r\n%b$%d\r\n%%d\r\n" % (self._middle, digits)
            trimming = trims and stop == end
            templates.append((self._plain + rest) * (stop - start - trimming))
            if trimming:
                templates.append(self._trimming + rest)
            start = stop
        values: list[int | bytes] = [0] * (3 * end)
        values[0::3] = map(len, payloads)
        values[1::3] = payloads
        values[2::3] = numbers
        return b"".join(templates) % tuple(values)


def _opening(*words: Argument, more: int) -> bytes:
    """The beginning of a request, as part of a template: so many more words follow."""
    return b"*%d\r\n" % (len(words) + more) + _words(*words)


def _words(*words: Argument) -> bytes:
    """Words of a request, as part of a template."""
    texts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"".join(b"$%d\r\n%b\r\n" % (len(text), text) for text in texts).replace(b"%", b"%%")


def fence_command(keys: Keys, seq: int) -> tuple[Argument, ...]:
    """Build the command that puts the fence at a number."""
    return (b"SET", keys.fence, seq, b"PX", int(FENCE_TTL * 1000))


def probing_commands(keys: Keys) -> list[tuple[Argument, ...]]:
    """Build a transaction that changes nothing, and is refused where one that appends would be: by ACL or by slot."""
    return [(b"MULTI",), (b"GET", keys.fence), (b"GET", keys.dead_letters), (b"EXEC",)]
