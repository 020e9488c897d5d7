"""Where results come from: versions, commit, machine, command."""

from __future__ import annotations

import os
import platform
import subprocess
from shutil import which
from typing import Any

import torch

from iiae_cli import __version__


def run_versions() -> dict[str, str]:
    """Versions that decide a run's numbers."""
    return {"iiae": __version__, "torch": torch.__version__, "python": platform.python_version()}


def run_origin(command: list[str]) -> dict[str, Any]:
    """Versions, git commit of the working folder, host, processor and command of a run."""
    commit = ""
    if which("git") is not None:
        git = ["git", "rev-parse", "HEAD"]
        ended = subprocess.run(git, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        commit = ended.stdout.strip() if ended.returncode == 0 else ""
    return {
        "versions": run_versions(),
        "git": commit or None,
        "host": platform.node(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "command": command,
    }
