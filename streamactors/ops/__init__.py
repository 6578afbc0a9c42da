"""How a job is watched and driven: command line and display."""
