"""``python -m benchmarks.peers``: see run.py."""

from .run import main

main()
