"""The benchmark suite: what streamll costs, what it carries, and what pipelining is worth, as ratios measured in one run.

What belongs here: measurements of this machine's run, and the report made of them. What does not: tests. Nothing here
fails because something is slow; it fails when it cannot be measured, or when what was sent did not arrive.
"""
