"""When, and again: wiring, epochs, recovery, the runner."""
