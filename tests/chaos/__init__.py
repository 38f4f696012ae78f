"""The proof: what streamll says of its events, held against an oracle that saw all of them, while everything fails.

What belongs here: seeded scenarios over whole sinks, on a scripted transport and on real servers, and the tests of the
tools that hurt. What does not: tests of single decisions (tests/unit), or of what one sink does (tests/sinks).
"""
