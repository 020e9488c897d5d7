"""A run directory: what training leaves behind, and how it is read again.

    config.yaml           the whole configuration
    model.safetensors     the kept weights (weights.py)
    checkpoints/          what `--resume` continues from (checkpoints.py)
    metrics.jsonl         one JSON object per log line and validation
    gallery.h5            latents of the test split's domain y
    samples/*.png         sample grids
    tensorboard/          events
    run.json              versions, git, host, command, timings, outcome

Every file is whole or missing. One process at a time writes into a run directory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import TEMPORARY, append_line, remove_temporaries, write_errors, writing
from iiae_cli.common.locks import LOCK, locked
from iiae_cli.config.presets import read_yaml
from iiae_cli.config.schema import Config
from iiae_cli.runs.checkpoints import Checkpoints


class RunDir:
    """The paths of one run and the atomic writes into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.model_file = path / "model.safetensors"
        self.metrics_file = path / "metrics.jsonl"
        self.gallery_file = path / "gallery.h5"
        self.info_file = path / "run.json"
        self.samples_folder = path / "samples"
        self.tensorboard_folder = path / "tensorboard"
        self.checkpoints = Checkpoints(path / "checkpoints")

    @property
    def _folders(self) -> tuple[Path, ...]:
        return (self.checkpoints.folder, self.samples_folder, self.tensorboard_folder)

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config_file.exists()

    def is_free(self) -> bool:
        """Whether nothing is here, or no more than a killed beginning of a run."""
        with write_errors(self.path):
            return not self.path.exists() or all(
                not any(path.iterdir())
                if path in self._folders
                else path.name == LOCK or path.name.endswith(TEMPORARY)
                for path in self.path.iterdir()
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder, keep other processes out, and remove what killed ones left.

        Raises:
            IiaeError: another process writes here, or a part of the run is a link to somewhere
                else.
        """
        for path in self._folders:
            if path.is_symlink():
                raise IiaeError(f"{path} is a link", "remove it, or choose another --run")
        with write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.path, "wait until it has ended, or choose another --run"):
                with write_errors(self.path):
                    for folder in (self.path, self.checkpoints.folder, self.samples_folder):
                        remove_temporaries(folder)
                yield
        finally:
            if not self.exists():  # the run was refused
                with suppress(OSError):
                    (self.path / LOCK).unlink()
                    self.path.rmdir()

    def create(self, config: Config) -> None:
        """Remove what an earlier run left, and write the configuration of a new one.

        Checkpoints go first, newest first: if this is broken off, `--resume` finds the old run at
        an earlier step.
        """
        with write_errors(self.path):
            self.checkpoints.clear()
            for folder in self._folders:
                folder.mkdir(parents=True, exist_ok=True)
                for path in folder.iterdir():
                    if not path.is_dir():  # the user's
                        path.unlink()
            for path in (self.model_file, self.metrics_file, self.gallery_file, self.info_file):
                path.unlink(missing_ok=True)
        write_text(self.config_file, config.to_yaml())

    def read_config(self) -> Config:
        """The run's configuration.

        Raises:
            IiaeError: missing or damaged.
        """
        try:
            return Config.model_validate(read_yaml(self.config_file))
        except ValidationError as error:
            raise IiaeError(
                f"{self.config_file} is of another version: {error.errors()[0]['msg']}",
                "train again with this version",
            ) from error

    def truncate_metrics(self, step: int, *, validated: bool = True) -> None:
        """Drop the lines that an interrupted run wrote after the checkpoint at `step`.

        Args:
            step: of the checkpoint.
            validated: whether the checkpoint was written after the validation at its step.
        """
        if not self.metrics_file.exists():
            return

        def belongs(line: str) -> bool:
            try:
                record = json.loads(line)
            except ValueError:  # torn by a power failure
                return False
            late = record["kind"] == "validation" and not validated
            return int(record["step"]) < step + (0 if late else 1)

        lines = self.metrics_file.read_text().splitlines(keepends=True)
        kept = [line for line in lines if belongs(line)]
        if kept != lines:
            write_text(self.metrics_file, "".join(kept))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        append_line(self.metrics_file, json.dumps(record))

    def write_info(self, record: dict[str, Any]) -> None:
        """Write run.json."""
        write_text(self.info_file, json.dumps(record, indent=2) + "\n")

    def read_info(self) -> dict[str, Any]:
        """run.json; empty where it is missing or damaged."""
        try:
            return dict(json.loads(self.info_file.read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def link_latest(self) -> None:
        """Point `latest` beside this run at it, unless that is not a link."""
        link = self.path.parent / "latest"
        if link.exists() and not link.is_symlink():
            return
        temporary = link.with_name(f".latest.{os.getpid()}")
        with write_errors(link):
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(self.path.name)
            temporary.replace(link)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
