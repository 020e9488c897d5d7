"""A preparation in parts: one part into a file of its own, and all of them into the data file.

A part's file says by which options it was made, so that merging takes nothing but the files; it runs the builder again
by these options, which is why the source has to be there still, unchanged. Pictures are not decoded again.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.signals import NEVER, Stop
from iiae_cli.data.parts import Part, all_in_order
from iiae_cli.data.sources.part_files import (
    REMEDY,
    Job,
    PartFile,
    differences,
    read_part,
    strangers,
    write_part,
)
from iiae_cli.data.sources.part_work import MergeWork, PartDone, PartWork
from iiae_cli.data.sources.registry import BUILDERS, PrepareOptions, build, build_and_write
from iiae_cli.data.sources.settings import digest_of
from iiae_cli.data.workspace import workspace

OUTPUT = "{output}"  # stands for the output in a part's command
# What decides the rows, and what a builder does with them; the rest is the machine's, and said anew when merging.
_KEPT = ("source", "image_size", "limit", "seed", "fractions", "side_by_side")
_FEATURES_KEPT = (
    *(
        "class_split",
        "unseen_classes",
        "backbone",
        "backbone_weights",
        "fine_tune_epochs",
        "invert_sketches",
    ),
    *("normalise", "allow_leak", "batch_size"),
)


def prepare_part(
    name: str,
    path: Path,
    options: PrepareOptions,
    part: Part,
    *,
    command: Sequence[str],
    resume: bool = False,
    overwrite: bool = False,
    stop: Stop = NEVER,
) -> None:
    """Make one part of a data set, and write its file.

    Args:
        name: of the set.
        path: the file; an existing one is replaced.
        options: of the builder.
        part: which one.
        command: its words, `OUTPUT` in the place of the output: merging gives them to the data file.
        resume: whether what an interrupted call left is taken up.
        overwrite: whether it is dropped otherwise.
        stop: asked before every block.

    Raises:
        IiaeError: as `build`; interrupted work is in the way; or the file cannot be written.
        Interrupted: a signal came; what is finished is kept.
    """
    settings = options.settings(name)
    job = Job(name, settings, _told(options), list(command))
    mine = {**settings, "shard": part.name}
    with workspace(path, mine, resume=resume, overwrite=overwrite) as folder:
        try:
            build(name, replace(options, work=PartWork(folder, stop, part)))
        except PartDone as done:
            write_part(path, part, job, done.shares, folder)
        else:
            raise AssertionError(f"the builder of {name} asked for no rows")


def is_part_of(found: PartFile, name: str, options: PrepareOptions, part: Part) -> bool:
    """Whether a part's file is this part of a data set by these options."""
    return (
        found.part == part
        and found.job.name == name
        and not differences(found.job.settings, options.settings(name))
    )


@dataclass(frozen=True)
class Merge:
    """Parts that belong together.

    Attributes:
        parts: all of them, in order.
    """

    parts: list[PartFile]

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.parts[0].job.name

    @property
    def settings_sha256(self) -> str:
        """What the data file's attribute of this name will be."""
        return digest_of(self.parts[0].job.settings)

    def write(
        self,
        output: Path,
        *,
        download: bool = False,
        stop: Stop = NEVER,
    ) -> list[str]:
        """Write the data file, some rows at a time; returns a line for every input that was left out.

        Args:
            output: an existing file is replaced.
            download: whether the backbone's weights may be fetched.
            stop: asked before every block.

        Raises:
            IiaeError: the source is not what it was, a part is damaged, or the file cannot be written.
            Interrupted: a signal came, and nothing was written.
        """
        first = self.parts[0]
        options = replace(_options(first), download=download)
        settings = options.settings(self.name)
        differing = differences(settings, first.job.settings)
        if differing:
            raise IiaeError(
                f"{first.path} was made with another {', '.join(differing)} than there is now",
                "merge in the folder where the shards were made, by the same version, the source being as it was; "
                "or make all shards again",
            )
        command = shlex.join(word.replace(OUTPUT, str(output)) for word in first.job.command)
        with workspace(output, {"merge": True}, resume=True) as folder:
            options = replace(options, work=MergeWork(folder, stop, self.parts))
            return build_and_write(self.name, output, options, command, digest_of(settings), folder)


def plan_merge(paths: Sequence[Path]) -> Merge:
    """Join parts.

    Args:
        paths: their files, in any order.

    Raises:
        IiaeError: no part's file, parts of different preparations, or one that is doubled or missing.
    """
    parts = [read_part(path) for path in paths]
    for part in parts:
        error = strangers(part, parts[0])
        if error is not None:
            raise error
    if parts[0].job.name not in BUILDERS:
        raise IiaeError(
            f"{parts[0].path} is a part of an unknown data set '{parts[0].job.name}'", REMEDY
        )
    machines = sorted(
        {one.machine for part in parts for one in part.shares.values() if len(one.places)}
    )
    if len(machines) > 1:
        console.warn(
            f"the shards were computed on {', '.join(machines)}: features differ by that in their last digits"
        )
    again = f"make the rest: iiae prepare {parts[0].job.name} …"
    return Merge(all_in_order([(part.path, part.part, part) for part in parts], again))


def _told(options: PrepareOptions) -> dict[str, Any]:
    """Options as JSON values."""
    values: dict[str, Any] = {key: getattr(options, key) for key in _KEPT}
    values["source"] = None if options.source is None else str(options.source)
    features = {key: getattr(options.features, key) for key in _FEATURES_KEPT}
    return dict(json.loads(json.dumps({**values, "features": features})))


def _options(part: PartFile) -> PrepareOptions:
    """The options that a part was made by.

    Raises:
        IiaeError: they are damaged.
    """
    told = dict(part.job.options)
    try:
        _refuse_others(told, (*_KEPT, "features"))
        _refuse_others(told["features"], _FEATURES_KEPT)
        return TypeAdapter(PrepareOptions).validate_python(told)
    except (ValueError, TypeError, KeyError) as error:
        raise IiaeError(f"{part.path} is damaged: its options are no options", REMEDY) from error


def _refuse_others(values: dict[str, Any], names: Sequence[str]) -> None:
    """Refuse values that `_told` does not give.

    Raises:
        ValueError: there are some.
    """
    if set(values) != set(names):
        raise ValueError(f"{sorted(values)} are not {sorted(names)}")
