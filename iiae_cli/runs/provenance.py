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
    """Where a run comes from: versions, git commit of the working folder, host, processor, command."""
    git = (
        subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if which("git") is not None
        else None
    )
    return {
        "versions": run_versions(),
        "git": git.stdout.strip() if git is not None and git.returncode == 0 else None,
        "host": platform.node(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "command": command,
    }
