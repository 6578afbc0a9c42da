"""StreamActors: a durable log, an exactly-once stream processor, and views, in one process. Only re-exports here."""
