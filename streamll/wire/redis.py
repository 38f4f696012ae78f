"""How an event travels through Redis Streams: fields, key names, the fence; and how a reader gets it back.

What belongs here: what a writer and a reader of Redis share, as pure functions. What does not: sockets and replies
(sinks/), or how an entry reached the reader (consumers/).

Version 1, one stream entry an event:

    event      the event, as it was encoded
    producer   who accepted it: one id for each sink of each process
    seq        the producer's number for it
    reason     in a dead letter only: why it is one

A field `events` is reserved for many events in one entry; a reader of version 1 refuses it.

The fence is a key beside the stream, one for each producer: the highest number of that producer that is in the stream.
Whoever appends moves it in the same step and leaves out what is not above it, so a batch that is sent again, or whose
first copy comes late, adds exactly what is missing.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from streamll.errors import ConfigurationError, DecodeError
from streamll.wire.entry import WireEntry

FIELD_EVENT = b"event"
FIELD_PRODUCER = b"producer"
FIELD_SEQ = b"seq"
FIELD_REASON = b"reason"
_RESERVED_FRAMING_FIELD = b"events"

FENCE_TTL = 30 * 24 * 3600.0
"""Seconds that a fence outlives its last batch: longer than what a dead process left on disk waits to be delivered."""
STOPPED_FENCE_TTL = 60.0
"""Seconds that it outlives a clean stop, when nothing is under way: only a copy that a proxy or switch still holds."""

SLOTS = 16_384
"""The hash slots of a Redis Cluster."""

STEP = 3
"""Arguments of the script for each entry: its number, its bytes, and why it is a dead letter (empty: it is none)."""

BEHIND = b"BEHIND"
"""What the script answers when the number that must precede the batch is not there."""

FENCE_SCRIPT = b"""\
local stream, fence, dead_letters = KEYS[1], KEYS[2], KEYS[3]
local producer, after, trim, limit, ttl = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local first = 6
local stored = redis.call('GET', fence) or '0'
local at = tonumber(stored)
if not at then return {0, 'WRONGTYPE the fence holds no number'} end
if at < after then return {at, 'BEHIND'} end
if #ARGV < first then return {at} end

-- The fence moves first, so that a user who may not write it, or a full memory, stops us before anything is in the
-- stream. It is written even when nothing is new: that renews its time, and gives WAIT a write to wait for.
local last = ARGV[#ARGV - 2]
if tonumber(last) <= at then
  redis.call('SET', fence, stored, 'PX', ttl)
  return {at}
end
redis.call('SET', fence, last, 'PX', ttl)

local trims = 0
if limit ~= '0' then
  for i = #ARGV - 2, first, -3 do
    if ARGV[i + 2] == '' then trims = i break end
  end
end
local done = stored
for i = first, #ARGV, 3 do
  local seq = ARGV[i]
  if tonumber(seq) > at then
    local reply
    if i == trims then
      reply = redis.pcall('XADD', stream, 'MAXLEN', trim, limit, '*',
                          'event', ARGV[i + 1], 'producer', producer, 'seq', seq)
    elseif ARGV[i + 2] == '' then
      reply = redis.pcall('XADD', stream, '*', 'event', ARGV[i + 1], 'producer', producer, 'seq', seq)
    elseif limit == '0' then
      reply = redis.pcall('XADD', dead_letters, '*',
                          'event', ARGV[i + 1], 'producer', producer, 'seq', seq, 'reason', ARGV[i + 2])
    else
      reply = redis.pcall('XADD', dead_letters, 'MAXLEN', '~', limit, '*',
                          'event', ARGV[i + 1], 'producer', producer, 'seq', seq, 'reason', ARGV[i + 2])
    end
    if type(reply) == 'table' and reply.err then
      redis.call('SET', fence, done, 'PX', ttl)
      return {tonumber(done), reply.err}
    end
    done = seq
  end
end
return {tonumber(done)}
"""
"""KEYS: stream, fence, dead-letter stream. ARGV: producer, the number that must precede, `~` or `=`, the longest
stream (0: any), the fence's life in milliseconds, then STEP arguments for each entry, in the order of their numbers.

Answers the fence as it is now and, when it stopped early, why: BEHIND or the error of the XADD that failed.
"""


@cache
def fence_script_sha() -> bytes:
    """The name under which a server keeps the script."""
    from hashlib import sha1  # only a writer needs it, and it takes three milliseconds to import

    return sha1(FENCE_SCRIPT, usedforsecurity=False).hexdigest().encode()


Argument = bytes | str | int


@dataclass(frozen=True)
class Keys:
    """The keys that one producer writes; in a cluster all three are in one slot."""

    stream: bytes
    fence: bytes
    dead_letters: bytes


@dataclass(frozen=True)
class Trim:
    """How long a stream may get: `limit` entries (0: any length), approximately unless `exact`."""

    limit: int
    exact: bool = False

    @property
    def sign(self) -> bytes:
        """The word of Redis for it."""
        return b"=" if self.exact else b"~"


def hash_slot(key: bytes) -> int:
    """Return the cluster slot of a key: CRC-16 (XMODEM) of its hash tag, or of all of it when it has none."""
    return binascii.crc_hqx(_hash_tag(key) or key, 0) % SLOTS


def _hash_tag(key: bytes) -> bytes:
    """What stands between the first `{` and the first `}` after it; empty when the key has no such part."""
    _, opened, rest = key.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return tag if opened and closed else b""


def keys_for(stream: str, producer: str, dead_letters: str = "", cluster: bool = False) -> Keys:
    """Name the keys of one producer of a stream.

    Args:
        stream: The stream's key.
        producer: The producer's id.
        dead_letters: The dead-letter stream's key; by default the stream's with `:dead-letter` behind it.
        cluster: Whether the keys live in a cluster, where the dead letters too must be in the stream's slot.

    Raises:
        ConfigurationError: When no other key can be in the stream's slot, or the given dead-letter stream is not.
    """
    name = stream.encode("utf-8", "surrogateescape")
    if not name:
        raise ConfigurationError("stream='': a stream needs a key")
    base = name
    if not _hash_tag(name):
        if b"}" in name:
            raise ConfigurationError(
                f"stream={stream!r}: no other key can share its slot in a cluster; leave the `}}` out, or put a part "
                "of the key in braces"
            )
        base = b"{" + name + b"}"
    fence = base + b":fence:" + producer.encode("utf-8", "surrogateescape")
    if not dead_letters:
        return Keys(name, fence, (base if cluster else name) + b":dead-letter")
    other = dead_letters.encode("utf-8", "surrogateescape")
    if other == name:
        raise ConfigurationError(f"dead_letter_stream={dead_letters!r}: must not be the stream itself")
    if cluster and hash_slot(other) != hash_slot(name):
        raise ConfigurationError(
            f"dead_letter_stream={dead_letters!r}: in a cluster it must be in the slot of stream={stream!r}; "
            f"give both the same part in braces, such as {base.decode('utf-8', 'surrogateescape') + ':dead-letter'!r}"
        )
    return Keys(name, fence, other)


def script_command(
    keys: Keys, producer: bytes, after: int, trim: Trim, items: Sequence[Argument], whole: bool = False
) -> tuple[Argument, ...]:
    """Build the command that appends entries by the script.

    Args:
        keys: Where to.
        producer: The producer's id.
        after: The number that must precede the entries.
        trim: How long the stream may get.
        items: STEP arguments for each entry, in the order of their numbers.
        whole: Send the script itself, which makes the server remember it, instead of its hash.
    """
    head = (b"EVAL", FENCE_SCRIPT) if whole else (b"EVALSHA", fence_script_sha())
    ttl = int(FENCE_TTL * 1000)
    return (*head, 3, keys.stream, keys.fence, keys.dead_letters, producer, after, trim.sign, trim.limit, ttl, *items)


def xadd_commands(keys: Keys, producer: bytes, trim: Trim, items: Sequence[Argument]) -> list[tuple[Argument, ...]]:
    """Build the XADD of each entry, for the way without a script; arguments as in `script_command`."""
    commands: list[tuple[Argument, ...]] = []
    for seq, payload, reason in zip(items[0::STEP], items[1::STEP], items[2::STEP], strict=True):
        fields = (FIELD_EVENT, payload, FIELD_PRODUCER, producer, FIELD_SEQ, seq)
        if not reason:
            commands.append((b"XADD", keys.stream, b"*", *fields))
        elif not trim.limit:
            commands.append((b"XADD", keys.dead_letters, b"*", *fields, FIELD_REASON, reason))
        else:
            limit = (b"MAXLEN", b"~", trim.limit)
            commands.append((b"XADD", keys.dead_letters, *limit, b"*", *fields, FIELD_REASON, reason))
    if trim.limit:
        for place in range(len(commands) - 1, -1, -1):
            if not items[place * STEP + 2]:
                name, key, *rest = commands[place]
                commands[place] = (name, key, b"MAXLEN", trim.sign, trim.limit, *rest)
                break
    return commands


def fence_command(keys: Keys, seq: int) -> tuple[Argument, ...]:
    """Build the command that puts the fence at a number."""
    return (b"SET", keys.fence, seq, b"PX", int(FENCE_TTL * 1000))


def decode_fields(flat: Sequence[bytes]) -> WireEntry:
    """Read a stream entry as the server gives it: names and values in turn; raises as `decode_entry`."""
    # What a sink writes is read without a detour: this is most of what reading an entry costs.
    if len(flat) == 6 and flat[0] == FIELD_EVENT and flat[2] == FIELD_PRODUCER and flat[4] == FIELD_SEQ:
        return WireEntry(flat[1], _as_text(flat[3]), _as_number(flat[5]))
    return decode_entry(dict(zip(flat[::2], flat[1::2], strict=False)))


def decode_entry(fields: Mapping[bytes | str, bytes | str]) -> WireEntry:
    """Read the fields of a stream entry, whether the client decoded them or not.

    Raises:
        DecodeError: When there is no event in it, or its number is none.
    """
    raw = {_as_bytes(name): value for name, value in fields.items()}
    payload = raw.get(FIELD_EVENT)
    if payload is None:
        if _RESERVED_FRAMING_FIELD in raw:
            raise DecodeError("the entry holds many events (field `events`): a newer version of streamll wrote it")
        raise DecodeError("the entry has no field `event`: streamll did not write it")
    return WireEntry(
        payload=_as_bytes(payload),
        producer=_as_text(raw.get(FIELD_PRODUCER, b"")),
        seq=_as_number(raw.get(FIELD_SEQ, b"0")),
        reason=_as_text(raw.get(FIELD_REASON, b"")),
    )


def _as_bytes(value: bytes | str) -> bytes:
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def _as_text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")


def _as_number(value: bytes | str) -> int:
    text = _as_text(value)
    # Longer than any number that is given out; int() itself refuses only thousands of digits.
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise DecodeError(f"the field `seq` is not a number: {text[:40]!r}")
    return int(text)
