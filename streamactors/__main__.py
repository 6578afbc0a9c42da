"""``python -m streamactors`` is the command ``streamactors``."""

from streamactors.ops.cli import main

main()
