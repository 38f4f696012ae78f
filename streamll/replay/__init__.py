"""Replay: what did not get where it belonged gets there now.

What belongs here: dead letters, which are moved back after a fix (redriving), and what dead processes left in a spool.
What does not: the command (cli/replay.py), and connections, keys, messages and segments, which are those of sinks,
consumers and journals.
"""
