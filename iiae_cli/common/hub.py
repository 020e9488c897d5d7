"""Runs on the Hugging Face Hub: `hf://OWNER/NAME`, by huggingface_hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from iiae_cli.common.errors import IiaeError

_FILES = ["*.md", "*.yaml", "*.safetensors", "gallery.h5"]


@cache
def pulled(path: Path) -> Path:
    """Returns the folder of `hf://OWNER/NAME`, downloaded unless cached; other paths unchanged."""
    kind, name = path.parts[:1], "/".join(path.parts[1:])
    if kind != ("hf:",):  # a path keeps one of the slashes
        return path
    with _hub(f"hf://{name}") as hub:
        return Path(hub.snapshot_download(name, allow_patterns=_FILES))


def push(folder: Path, name: str) -> str:
    """Uploads a folder as the model OWNER/NAME, private if it is new; returns its address."""
    with _hub(f"hf://{name}") as hub:
        api = hub.HfApi()
        api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=name)
    return f"hf://{name}"


@contextmanager
def _hub(address: str) -> Iterator[Any]:
    """Yields the library; whatever it raises is a user's error."""
    try:
        import huggingface_hub as hub
    except ImportError as error:
        install = "pip install 'iiae-cli[hub]', or copy the folder by other means"
        raise IiaeError("huggingface_hub is not installed", install) from error
    try:
        yield hub
    except Exception as error:  # no network, no such model or permission: of its HTTP library, too
        reason = " ".join(str(error).split())[:200]
        raise IiaeError(
            f"{address} cannot be reached: {reason}",
            "check the name and the network, and log in: hf auth login",
        ) from error
