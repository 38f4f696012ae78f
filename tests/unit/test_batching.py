"""What goes in a batch, and how a rejected one is divided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.delivery.batching import batch_limit, byte_limit, halves, next_size
from streamll.options import SinkOptions
from tests.unit.deliveries import entry

all_options = st.builds(
    SinkOptions,
    buffer_size=st.integers(2, 50_000),
    batch_size=st.integers(1, 100_000),
    batch_growth=st.integers(1, 1000),
)


@pytest.mark.parametrize(
    ("batch_size", "buffer_size", "limit"),
    [(500, 10_000, 500), (500, 100, 50), (500, 3, 1), (1, 2, 1), (7, 14, 7), (7, 13, 6)],
)
def test_a_batch_takes_at_most_half_of_the_buffer(batch_size: int, buffer_size: int, limit: int) -> None:
    assert batch_limit(SinkOptions(batch_size=batch_size, buffer_size=buffer_size)) == limit


@pytest.mark.parametrize(
    ("waiting", "size"),
    [(0, 100), (1, 100), (100, 100), (101, 101), (999, 999), (1000, 1000), (1001, 1000), (10_000, 1000)],
)
def test_a_batch_grows_with_the_backlog_up_to_its_growth(waiting: int, size: int) -> None:
    assert next_size(waiting, SinkOptions(batch_size=100, batch_growth=10)) == size


def test_a_growth_of_one_keeps_batches_as_they_are() -> None:
    assert next_size(10_000, SinkOptions(batch_size=100, batch_growth=1)) == 100


@pytest.mark.parametrize(("batch_bytes", "buffer_bytes", "limit"), [(1000, 10_000, 1000), (9000, 10_000, 5000)])
def test_a_batch_takes_at_most_half_of_the_buffers_bytes(batch_bytes: int, buffer_bytes: int, limit: int) -> None:
    assert byte_limit(SinkOptions(batch_bytes=batch_bytes, buffer_bytes=buffer_bytes)) == limit


@given(all_options, st.integers(0, 50_000), st.integers(0, 50_000))
def test_sizes_are_within_their_bounds_and_grow_with_what_waits(options: SinkOptions, fewer: int, more: int) -> None:
    fewer, more = sorted((fewer, more))
    assert 1 <= batch_limit(options) <= next_size(fewer, options) <= next_size(more, options)
    assert next_size(more, options) <= max(1, options.buffer_size // 2)
    assert next_size(more, options) <= batch_limit(options) * options.batch_growth


@given(st.integers(2, 300))
def test_halves_are_the_batch_in_its_order(size: int) -> None:
    batch = [entry(seq) for seq in range(1, size + 1)]
    first, second = halves(batch)
    assert [*first, *second] == batch
    assert len(second) >= 1
    assert 0 <= len(first) - len(second) <= 1
