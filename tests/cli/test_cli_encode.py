"""`iiae encode` end to end: shards of a job array, merging, resuming, what was skipped."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import Program, Trained, untrained_run

from iiae_cli.cli.options import shard_of, shard_output
from iiae_cli.common.errors import IiaeError

ARRAY = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "2"}


def content(path: str | Path) -> dict[str, object]:
    """Everything in an HDF5 file, datasets and attributes."""
    found: dict[str, object] = {}
    with h5py.File(path, "r") as file:
        found.update({f"@{name}": str(value) for name, value in file.attrs.items()})
        file.visititems(
            lambda name, one: (
                found.update({name: one[()].tolist()}) if isinstance(one, h5py.Dataset) else None
            )
        )
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run that was never trained, and digits: nothing here asks how good the latents are."""
    from iiae_cli.cli.prepare_run import run
    from iiae_cli.data.sources.plan import PrepareOptions

    folder = tmp_path_factory.mktemp("untrained")
    run(
        "digits-cdcb",
        PrepareOptions(),
        output=folder / "digits.h5",
        overwrite=False,
        pictures=folder / "digits",
    )
    return Trained(untrained_run(folder / "run"), folder / "digits.h5", folder / "digits")


# ---- which shard


@pytest.mark.parametrize("word", ["auto", "slurm"])
def test_a_task_of_an_array_is_a_shard_counted_from_its_lowest(word: str) -> None:
    assert shard_of(word, ARRAY) == (3, 4)
    assert shard_of(word, {**ARRAY, "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_STEP": "1"}) == (
        0,
        4,
    )
    assert shard_of(word, {**ARRAY, "SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_STEP": "3"}) == (
        2,
        4,
    )


@pytest.mark.parametrize(
    "change, said",
    [
        ({"SLURM_ARRAY_TASK_ID": ""}, "SLURM_ARRAY_TASK_ID is not set"),
        ({"SLURM_ARRAY_TASK_COUNT": ""}, "SLURM_ARRAY_TASK_COUNT is not set"),
        ({"SLURM_ARRAY_TASK_MIN": "one"}, "SLURM_ARRAY_TASK_MIN is 'one'"),
        (
            {"SLURM_ARRAY_TASK_ID": "6"},
            "SLURM_ARRAY_TASK_ID 6 has no place among 4 tasks from 2 on",
        ),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "has no place"),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_STEP": "2"}, "has no place"),
    ],
)
def test_no_array_or_a_broken_one_is_refused(change: dict[str, str], said: str) -> None:
    with pytest.raises(IiaeError) as caught:
        shard_of("auto", {**ARRAY, **change})
    assert (
        said in caught.value.message
        and "--array" in caught.value.hint
        and "--shard" in caught.value.hint
    )


def test_outputs_of_shards_are_named_so_that_they_sort() -> None:
    assert shard_output(Path("a/z-{shard}.h5"), "3/12", (3, 12)) == Path("a/z-03-of-12.h5")
    assert shard_output(Path("z-{shard}.h5"), "auto", (9, 10)) == Path("z-9-of-10.h5")
    assert shard_output(Path("z.h5"), "0/2", (0, 2)) == Path("z.h5")
    with pytest.raises(IiaeError, match="all tasks of the array would write"):
        shard_output(Path("z.h5"), "auto", (0, 2))
    with pytest.raises(IiaeError, match="none was named"):
        shard_output(Path("z-{shard}.h5"), None, None)


# ---- the program


def test_a_job_array_and_its_merge_equal_one_call(
    iiae: Program, trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(trained.pictures / "test" / "x", folder)
    for name in ("00003.png", "00250.png"):
        (folder / name).write_bytes(b"broken")
    base = ("encode", folder, "--domain", "x", "--run", trained.run, "--logvar")
    assert iiae(*base, "-o", "whole.h5").code == 3
    codes = []
    for task in range(1, 8):
        for name, value in (("ID", task), ("COUNT", 7), ("MIN", 1)):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        outcome = iiae(*base, "--shard", "auto", "-o", "z-{shard}.h5", "--resume")
        assert f"shard {task - 1}/7: inputs " in outcome.err
        codes.append(outcome.code)
    assert codes == [3, 0, 0, 0, 0, 3, 0]
    parts = sorted(Path().glob("z-*-of-7.h5"))
    assert len(parts) == 7
    again = iiae(*base, "--shard", "auto", "-o", "z-{shard}.h5", "--resume")
    assert again.code == 0 and "z-6-of-7.h5 is complete already" in again.err
    missing = iiae("encode", *parts[:3], *parts[4:], "--merge", "-o", "merged.h5")
    assert (
        missing.code == 2
        and "shard 3/7 is missing" in missing.error()[0]
        and "--shard 3/7" in missing.error()[1]
    )
    merged = iiae("encode", *reversed(parts), "--merge", "-o", "merged.h5", "--json")
    assert merged.code == 3 and len(merged.json["skipped"]) == 2 and merged.json["rows"] == 298
    assert content("merged.h5") == content("whole.h5")
    again = iiae("encode", *parts, "--merge", "-o", "merged.h5", "--resume")
    assert again.code == 3 and "is complete already" in again.err
    iiae("encode", trained.data, "--domain", "y", "--run", trained.run, "-o", "gallery.h5")
    other = iiae("encode", "gallery.h5", "--merge", "-o", "merged.h5", "--resume")
    assert (
        other.code == 2 and "with another" in other.error()[0] and "--overwrite" in other.error()[1]
    )
    replaced = iiae(
        "encode", "gallery.h5", "--merge", "-o", "merged.h5", "--resume", "--overwrite", "--json"
    )
    assert replaced.code == 0 and replaced.json["rows"] == 300
    strange = iiae("encode", *parts, "gallery.h5", "--merge", "-o", "new.h5")
    assert strange.code == 2 and not Path("new.h5").exists() and not Path("new.h5.partial").exists()


def test_shards_of_another_list_do_not_merge(iiae: Program, trained: Trained) -> None:
    files = sorted((trained.pictures / "test" / "x").glob("*.png"))
    base = ("--domain", "x", "--run", trained.run)
    iiae("encode", *files[:40], *base, "--shard", "0/2", "-o", "a.h5")
    iiae("encode", *files[1:41], *base, "--shard", "1/2", "-o", "b.h5")
    outcome = iiae("encode", "a.h5", "b.h5", "--merge", "-o", "z.h5")
    assert (
        outcome.code == 2
        and "b.h5 was encoded from another list of inputs than a.h5" in outcome.error()[0]
    )


def test_shards_of_a_data_file_are_the_whole_to_the_last_bit(
    iiae: Program, trained: Trained
) -> None:
    base = ("encode", trained.data, "--domain", "y", "--run", trained.run, "--dtype", "float16")
    iiae(*base, "-o", "whole.h5")
    for index in range(3):
        assert iiae(*base, "--shard", f"{index}/3", "-o", "part-{shard}.h5").code == 0
    assert iiae("encode", *sorted(Path().glob("part-*")), "--merge", "-o", "merged.h5").code == 0
    assert content("merged.h5") == content("whole.h5")
    with h5py.File("merged.h5") as file:
        assert file["shared/mean"].dtype == np.float16


def test_a_shard_of_unreadable_pictures_is_a_part_and_not_an_error(
    iiae: Program, trained: Trained
) -> None:
    folder = Path("mixed")
    folder.mkdir()
    for number, path in enumerate(sorted((trained.pictures / "test" / "x").glob("*.png"))[:4]):
        if number < 2:
            (folder / path.name).write_bytes(b"broken")
        else:
            shutil.copy(path, folder)
    base = ("encode", folder, "--domain", "x", "--run", trained.run, "--batch-size", "2")
    assert [
        iiae(*base, "--shard", f"{index}/2", "-o", "p{shard}.h5").code for index in range(2)
    ] == [3, 0]
    merged = iiae("encode", "p0-of-2.h5", "p1-of-2.h5", "--merge", "-o", "z.h5", "--json")
    assert merged.code == 3 and merged.json["rows"] == 2 and len(merged.json["skipped"]) == 2
