"""Writes docs/options.md from the option tables in the code: `python scripts/options_doc.py` (`--check` only compares)."""

from __future__ import annotations

import sys
from pathlib import Path

from streamll.consumers.base_options import ConsumerOptions
from streamll.consumers.file import FileConsumerOptions
from streamll.consumers.rabbitmq import RabbitMQConsumerOptions
from streamll.consumers.redis import RedisConsumerOptions
from streamll.options import OptionSet, PipelineOptions, SinkOptions
from streamll.sinks.file import FileSink
from streamll.sinks.memory import MemorySink
from streamll.sinks.rabbitmq import RabbitMQSink
from streamll.sinks.redis import RedisSink
from streamll.sinks.terminal import TerminalSink

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"

HEAD = """\
# Options

Made by `python scripts/options_doc.py` from the tables in the code.

A sink's option can stand in its URL (`redis://localhost:6379/0?stream=app&batch_size=100`). What every sink has can be
given to `streamll.configure(batch_size=100)` too, for all sinks given as URLs, or stand in the environment
(`STREAMLL_BATCH_SIZE=100`). The URL wins over `configure`, `configure` over the environment. A sink made by its class
takes options by name (`RedisSink(batch_size=100)`), which win over its URL. Durations are seconds. A wrong value is
refused when the sink is made, with what is allowed.

Besides, in the environment: `STREAMLL_SINKS` (sink URLs, separated by commas), `STREAMLL_ENABLED=0` (all of it a no-op),
`STREAMLL_DEBUG=1` (streamll's own log to standard error) and `OTEL_SERVICE_NAME` (when `service` is not set).

In Python only: `before_send` of `configure`; `event_filter`, `on_delivery`, `name` and `retry_wait` (a wait strategy of
tenacity) of every sink; `client` of RedisSink.
"""

SECTIONS: list[tuple[str, type[OptionSet]]] = [
    ("Every sink", SinkOptions),
    ("The pipeline", PipelineOptions),
    ("RedisSink", RedisSink.own_options),
    ("RabbitMQSink", RabbitMQSink.own_options),
    ("FileSink", FileSink.own_options),
    ("TerminalSink", TerminalSink.own_options),
    ("MemorySink", MemorySink.own_options),
    ("Every consumer", ConsumerOptions),
    ("RedisConsumer, besides", RedisConsumerOptions),
    ("RabbitMQConsumer, besides", RabbitMQConsumerOptions),
    ("FileConsumer, besides", FileConsumerOptions),
]


def page() -> str:
    """The page, as it should be."""
    parts = [HEAD]
    for title, options in SECTIONS:
        parts.append(f"\n## {title}\n\n| option | default | allowed | meaning |\n| --- | --- | --- | --- |\n")
        shown = ConsumerOptions.names() if title.endswith("besides") else ()
        for row in (row for row in options.table() if row["name"] not in shown):
            cells = (f"`{row['name']}`", row["default"], row["allowed"], row["doc"])
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def main() -> int:
    """Write the page, or compare it."""
    if "--check" in sys.argv[1:]:
        if PAGE.read_text() != page():
            print(f"{PAGE.name} is not what the code says: run python scripts/options_doc.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
