"""What `AutoTracer` is made of: which functions are wanted, and the two ways of seeing their calls."""
