"""Values and contracts that everything else speaks in; no asyncio, no I/O."""
