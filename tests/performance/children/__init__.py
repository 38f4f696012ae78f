"""What the processes of the benchmarks do: each module is run as a program by child.py, and speaks JSON with the test.

What belongs here: the work that is measured, one module for each kind of process. What does not: tests, or verdicts.
"""
