"""What `MemoryProfiler` is made of: readings of memory, and what they mean."""
