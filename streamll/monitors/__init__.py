"""What watches the program: profiler, event tracer, memory profiler, metrics. None of it knows of sinks."""
