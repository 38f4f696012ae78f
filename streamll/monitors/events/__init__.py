"""What `EventTracer` is made of: what is kept of an event, and where the time of a flow goes."""
