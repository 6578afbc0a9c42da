"""The peers' programs, each started as a script in its own environment: entry.py is what they share."""
