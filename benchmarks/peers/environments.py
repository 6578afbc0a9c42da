"""A virtual environment for each set of pinned packages, made at its first use and kept.

A file ``made`` with the packages' names is written last, so an environment whose making was interrupted, or that holds
other versions than are asked for now, is made anew.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from .table import Peer


class Unavailable(Exception):
    """The peer can't be installed or did not run. The message says why in one line."""


def python_of(peer: Peer, envs: Path) -> Path:
    """Return the interpreter of the peer's environment, made if need be."""
    if not peer.requirements:
        return Path(sys.executable)
    folder = envs / re.sub(r"[^\w.]+", "-", peer.version)
    interpreter, made = folder / "bin" / "python", folder / "made"
    wanted = "\n".join(peer.requirements)
    if not made.exists() or made.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        print(f"making the environment of {peer.version} ...", flush=True)
        _run([_base(peer), "-m", "venv", str(folder)])
        _run([str(interpreter), "-m", "pip", "install", "-q", "--disable-pip-version-check", *peer.requirements])
        made.write_text(wanted, encoding="utf-8")
    return interpreter


def _base(peer: Peer) -> str:
    """Return a Python that the peer has wheels for: this one if it fits."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" in peer.pythons:
        return sys.executable
    for version in peer.pythons:
        if found := shutil.which(f"python{version}"):
            return found
    raise Unavailable(f"has wheels for Python {' and '.join(peer.pythons)}, and none of them is here")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise Unavailable(f"can't be installed: {said[-1]}")
