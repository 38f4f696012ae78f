"""The soak: steady load for minutes or hours with a fault every few seconds, and the numbers watched all the time.

What belongs here: what runs long, the lines it prints, and the verdict in the end. What does not: the ways to hurt
something (tests/chaos/faults.py), the servers (tests/fixtures), or single scenarios with every option drawn (tests/chaos).
"""
