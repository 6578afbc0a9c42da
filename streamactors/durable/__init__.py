"""What survives a crash: files, the log, state, checkpoints, views."""
