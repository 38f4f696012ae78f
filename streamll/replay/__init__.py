"""Replay: what did not get where it belonged gets there now.

What belongs here: dead letters, which are moved back after a fix (redriving). What does not: the command (cli/replay.py),
and connections, keys and messages, which are those of the sinks and consumers.
"""
