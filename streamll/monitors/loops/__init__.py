"""What `LoopWatch` is made of: a loop's heartbeat, and whose stack blocks it."""
