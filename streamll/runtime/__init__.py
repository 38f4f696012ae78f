"""Mechanism: threads, clocks, the buffer. What to do is decided in `delivery`."""
