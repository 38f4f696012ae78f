"""What `Metrics` is made of: instruments, and the series that they record in."""
