"""`iiae encode` end to end: shards of a job array, merging, resuming, what was skipped."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import refusal

from iiae_cli.cli.options import shard_of, shard_output
from iiae_cli.common.errors import IiaeError
from iiae_cli.data.blocks import Part
from iiae_cli.inference.latents import LatentCache

ARRAY = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "2"}


# ---- which shard


@pytest.mark.parametrize("word", ["auto", "slurm"])
def test_a_task_of_an_array_is_a_shard_counted_from_its_lowest(word):
    assert shard_of(word, ARRAY) == Part(3, 4)
    for task, step, index in (("2", "1", 0), ("8", "3", 2)):
        changed = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_STEP": step}
        assert shard_of(word, {**ARRAY, **changed}) == Part(index, 4)


@pytest.mark.parametrize(
    "change",
    [{"ID": ""}, {"MIN": "one"}, {"ID": "6"}, {"ID": "1"}, {"ID": "3", "STEP": "2"}],
)
def test_a_broken_array_is_refused(change):
    values = {f"SLURM_ARRAY_TASK_{name}": value for name, value in change.items()}
    for environment in ({**ARRAY, **values}, {}):
        error = refusal(shard_of, "auto", environment)
        assert "SLURM_ARRAY_TASK_ID" in error.message and "--array" in error.hint


def test_outputs_of_shards_are_named_so_that_they_sort():
    assert shard_output(Path("a/z-{shard}.h5"), "3/12", Part(3, 12)) == Path("a/z-03-of-12.h5")
    assert shard_output(Path("z-{shard}.h5"), "auto", Part(9, 10)) == Path("z-9-of-10.h5")
    assert shard_output(Path("z.h5"), "0/2", Part(0, 2)) == Path("z.h5")
    with pytest.raises(IiaeError, match="all tasks of the array would write"):
        shard_output(Path("z.h5"), "auto", Part(0, 2))
    with pytest.raises(IiaeError, match="names a shard"):
        shard_output(Path("z-{shard}.h5"), None, None)


# ---- the program


def test_a_job_array_and_its_merge_have_the_values_of_one_call(
    iiae, trained, monkeypatch, tmp_path
):
    folder = tmp_path / "pictures"
    shutil.copytree(trained.pictures / "test" / "x", folder)
    for name in ("00003.png", "00298.png"):
        (folder / name).write_bytes(b"broken")
    base = ("encode", folder, "--domain", "x", "--run", trained.run, "--logvar")
    assert iiae(*base, "-o", "whole.h5").code == 3
    sharded = (*base, "--batch-size", "32", "-o", "z-{shard}.h5", "--resume", "--shard")
    for task, code in enumerate((3, 0, 3)):
        for name, value in (("ID", task + 1), ("COUNT", 3), ("MIN", 1)):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        outcome = iiae(*sharded, "auto")
        assert outcome.code == code and f"shard {task}/3: inputs " in outcome.err
    again = iiae(*sharded, "2/3")
    assert again.code == 3 and "z-2-of-3.h5 is already complete" in again.err
    parts = sorted(Path().glob("z-*-of-3.h5"))

    error, hint = iiae("encode", *parts[::2], "--merge", "-o", "merged.h5").error()
    assert "missing shards: 1/3" in error and "--shard 1/3" in hint
    merge = ("encode", *reversed(parts), "--merge", "--json", "-o")
    merged = iiae(*merge, "merged.h5")
    assert merged.code == 3 and len(merged.json["skipped"]) == 2 and merged.json["rows"] == 298
    one, other = (LatentCache.read(Path(name)) for name in ("merged.h5", "whole.h5"))
    assert one.ids == other.ids and one.attributes() == other.attributes()
    np.testing.assert_allclose(one.encoded.shared_mean, other.encoded.shared_mean, atol=1e-5)
    again = iiae(*merge, "merged.h5", "--resume")
    assert again.code == 3 and "is already complete" in again.err
    error, hint = iiae(*merge, "whole.h5", "--resume").error()
    assert "with another batch size" in error and "--overwrite" in hint
    assert "is not a shard" in iiae(*merge, "new.h5", "whole.h5").error()[0]
    assert not list(Path().glob("new.h5*"))
    picture = folder / "00001.png"
    for options in (["--overwrite"], ["--overwrite", "--resume"]):
        assert "is not replaced" in iiae(*merge, picture, *options).error()[0]
