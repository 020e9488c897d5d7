"""The data sets by name: how each one's plan is made from the options of `iiae prepare`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import data_folder
from iiae_cli.data.sources.cars import plan_cars
from iiae_cli.data.sources.cdcb import colour_pair, outline_pair, plan_digits, sketch_pair
from iiae_cli.data.sources.classes import plan_classes
from iiae_cli.data.sources.download import ARCHIVES, BY_HAND, archive_of, find_folder
from iiae_cli.data.sources.idx import plan_idx
from iiae_cli.data.sources.manifest import is_manifest, plan_manifest
from iiae_cli.data.sources.pairs import plan_folders, plan_halves
from iiae_cli.data.sources.plan import Plan, Prepared, PrepareOptions, ReadRows, Work
from iiae_cli.data.sources.sketchy import plan_sketchy

# Maps' halves are 600 a side: 2,194 pairs are 4.7 GB, and the paper's pipeline reads them at 256 by
# area anyway.
HALF_SIZE = 256
ARCHIVE_SUFFIXES = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zip", ".7z")

Builder: TypeAlias = Callable[[PrepareOptions], Plan]


def _halves(name: str, options: PrepareOptions) -> Plan:
    """Facades or Maps: pictures in their archive's layout; `val` is Maps' test split."""
    folder, attributes = _source_folder(name, options)
    place = find_folder(folder, "train") or folder
    size = options.image_size or HALF_SIZE
    options = replace(options, source=place, image_size=size)
    return _described(plan_halves(options, need_test=True, divided=True), attributes)


def _pairs(options: PrepareOptions) -> Plan:
    source = options.source
    if source is None:
        raise IiaeError(
            "the source of your pairs was not named", "iiae prepare pairs SOURCE -o FILE.h5"
        )
    if not options.side_by_side:
        return plan_manifest(options) if is_manifest(source) else plan_folders(options)
    if not source.is_dir():
        raise IiaeError(f"{source} is no folder of side-by-side pictures", "name their folder")
    return plan_halves(options)


def _class_set(name: str, plan: Builder, options: PrepareOptions) -> Plan:
    """A set of classes, whose rows are features."""
    source, attributes = options.source, {"source": str(options.source)}
    if source is None or (source.is_file() and source.suffix in ARCHIVE_SUFFIXES):
        source, attributes = _source_folder(name, options)
    if options.image_size is not None:
        raise IiaeError(
            "--image-size does not apply: this set is stored as features", "leave --image-size out"
        )
    return _described(plan(replace(options, source=source)), attributes)


def _source_folder(name: str, options: PrepareOptions) -> tuple[Path, dict[str, str]]:
    """The folder with a set's files, and what to record of where it came from."""
    return archive_of(name, options.source, options.download, data_folder() / "downloads")


def _described(plan: Plan, attributes: Mapping[str, str]) -> Plan:
    """The plan whose data file says where its source came from."""

    def assemble(rows: Mapping[str, ReadRows], work: Work) -> Prepared:
        prepared = plan.assemble(rows, work)
        known = {k: v for k, v in prepared.attributes.items() if k != "source"}
        return replace(prepared, attributes={**attributes, **known})

    return replace(plan, assemble=assemble)


BUILDERS: dict[str, Builder] = {
    "digits-cdcb": partial(plan_digits, colour_pair),
    "digits-edge": partial(plan_digits, outline_pair),
    "mnist-cdcb": partial(plan_idx, "MNIST", colour_pair),
    "fashion-cdcb": partial(plan_idx, "Fashion-MNIST", colour_pair),
    "fashion-edges": partial(plan_idx, "Fashion-MNIST", sketch_pair),
    "cars": plan_cars,
    "facades": partial(_halves, "facades"),
    "maps": partial(_halves, "maps"),
    "pairs": _pairs,
    "sketchy": partial(_class_set, "sketchy", plan_sketchy),
    "classes": partial(_class_set, "classes", plan_classes),
}
EMBEDDED = ("digits-cdcb", "digits-edge")
CLASS_SETS = ("sketchy", "classes")
DOWNLOADED = (*ARCHIVES, "mnist-cdcb", "fashion-cdcb", "fashion-edges")


def build(name: str, options: PrepareOptions) -> Plan:
    """Plan a data set.

    Raises:
        IiaeError: unknown set, an option that does not apply, or a source that is missing or
            damaged.
    """
    if name not in BUILDERS:
        raise IiaeError(f"unknown data set '{name}'", _what_else(name))
    if options.wants_classes and name not in CLASS_SETS:
        raise IiaeError(
            f"{name} takes no --split, --unseen-classes or --backbone…",
            f"these are for {' and '.join(CLASS_SETS)}",
        )
    if options.side_by_side and name != "pairs":
        raise IiaeError(
            f"--side-by-side does not apply to {name}",
            "leave it out; it is for: iiae prepare pairs SOURCE",
        )
    return BUILDERS[name](options)


def _what_else(name: str) -> str:
    """A hint for somebody who names something else in a data set's place."""
    path = Path(name)
    if path.is_file() and path.suffix in (".h5", ".hdf5"):
        return (
            f"to join shards: iiae prepare {name} … --merge -o OUTPUT; "
            "a data file is ready to train on as it is"
        )
    if path.exists():
        return (
            f"for pictures of your own: iiae prepare pairs {name}, "
            "or classes where pairs share a class alone"
        )
    return f"data sets: {', '.join(BUILDERS)}"


def how_to_prepare(name: str, path: Path) -> str:
    """The command that makes a set's data file at `path`, and where its source comes from."""
    if name in BY_HAND:
        return f"{BY_HAND[name]} -o {path}"
    if name not in BUILDERS:
        return f"iiae prepare pairs SOURCE -o {path}, or iiae prepare classes SOURCE -o {path}"
    source = "" if name in EMBEDDED else " --download" if name in DOWNLOADED else " SOURCE"
    return f"iiae prepare {name}{source} -o {path}   (see iiae prepare --help)"
