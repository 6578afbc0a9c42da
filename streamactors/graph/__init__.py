"""What shape a pipeline has: the fluent API, its checks, its plan; pure data."""
