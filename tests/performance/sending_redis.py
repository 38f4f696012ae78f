"""How others append the same bytes to a Redis stream: redis-py one by one and pipelined, and redis-benchmark.

What belongs here: those, and the server's own processor time. What does not: the sink (sending.py).
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from pathlib import Path

import redis

from streamll.wire.redis import FIELD_EVENT, FIELD_PRODUCER, FIELD_SEQ
from tests.fixtures.redis import connect
from tests.performance.sending import PATIENCE, Sent, clocked

STREAM = "performance"
PRODUCER = b"0123456789abcdef0123456789abcdef"


class Appender:
    """A redis-py client that appends what a sink would append.

    Args:
        url: The server, on whatever way.
        payload: The bytes of the event.
    """

    def __init__(self, url: str, payload: bytes) -> None:
        self._client = connect(url, socket_timeout=PATIENCE)
        self._payload = payload
        self._client.ping()

    def one_by_one(self, n: int) -> Sent:
        """XADD, its answer, the next one."""
        add, payload = self._client.xadd, self._payload
        with clocked(n) as sent:
            for seq in range(n):
                add(STREAM, {FIELD_EVENT: payload, FIELD_PRODUCER: PRODUCER, FIELD_SEQ: seq})
        return sent

    def pipelined(self, n: int, batch: int) -> Sent:
        """So many XADD in a pipeline without a transaction, all their answers, the next ones."""
        payload, left = self._payload, n
        with clocked(n) as sent:
            while left > 0:
                pipeline = self._client.pipeline(transaction=False)
                for seq in range(min(batch, left)):
                    pipeline.xadd(STREAM, {FIELD_EVENT: payload, FIELD_PRODUCER: PRODUCER, FIELD_SEQ: seq})
                left -= len(pipeline.execute())
        return sent

    def close(self) -> None:
        """Hang up."""
        self._client.close()


def server_cpu(client: redis.Redis) -> float:
    """The processor time that the server has used so far, in seconds."""
    used = client.info("cpu")
    return float(used["used_cpu_sys"] + used["used_cpu_user"])


def find_redis_benchmark(server: str) -> str | None:
    """The redis-benchmark beside a redis-server, else the one on PATH, else None."""
    beside = Path(server).with_name("redis-benchmark")
    return str(beside) if beside.exists() else shutil.which("redis-benchmark")


def redis_benchmark(program: str, port: int, size: int, n: int, pipeline: int) -> float:
    """Have redis-benchmark append entries of our shape and size from its 50 connections; returns events a second.

    Args:
        program: redis-benchmark.
        port: The server's.
        size: Bytes of the event; they are letters, since an argument cannot hold just any byte.
        n: How many.
        pipeline: Commands that each connection has under way.
    """
    entry = [FIELD_EVENT, b"x" * size, FIELD_PRODUCER, PRODUCER, FIELD_SEQ, b"1000000"]
    command = [program, "-h", "127.0.0.1", "-p", str(port), "-n", str(n), "-P", str(pipeline), "--csv"]
    command += ["XADD", STREAM, "*", *(part.decode() for part in entry)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENCE)
    (row,) = [row for row in csv.DictReader(io.StringIO(done.stdout)) if row.get("rps")]
    return float(row["rps"])
