"""Decisions about one batch. Time, randomness and what the broker said are arguments; nothing here waits or does I/O."""
