"""What `ActionProfiler` is made of: how calls are counted, and stacks sampled."""
