"""Sources and sinks for other systems: one file a system, each an optional extra."""
