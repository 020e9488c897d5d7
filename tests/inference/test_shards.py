"""Shards: how a list is divided, what a merge refuses, and that the joined cache is the undivided
one.
"""

import json

import h5py
import numpy as np
import pytest
from test_latents import PARTS, cache_of

from iiae_cli.common.errors import IiaeError
from iiae_cli.inference import shards as module
from iiae_cli.inference.latents import LatentFormat, read_latents, write_latents, write_stream
from iiae_cli.inference.shards import Shard, describe, plan_merge, shard_json, shard_of_list
from iiae_cli.inference.trained import Encoded

WHOLE = cache_of(rows=11, seed=7)


# ---- dividing


@pytest.mark.parametrize(
    "total, count, batch", [(11, 3, 2), (11, 3, 4), (100, 7, 8), (64, 64, 1), (5, 5, 16), (9, 4, 8)]
)
def test_shards_are_whole_batches_that_cover_the_list(total, count, batch):
    parts = [shard_of_list(index, count, total, batch) for index in range(count)]
    assert [one for part in parts for one in range(part.start, part.stop)] == list(range(total))
    if -(-total // batch) >= count:
        assert all(part.start % batch == 0 for part in parts)
        sizes = [-(-(part.stop - part.start) // batch) for part in parts]
        assert max(sizes) - min(sizes) <= 1
    assert parts[0].name == f"0/{count}"


def test_an_empty_shard_is_refused():
    with pytest.raises(IiaeError, match="of 3 inputs is empty"):
        [shard_of_list(index, 4, 3, 2) for index in range(4)]


# ---- joining


def cut(
    folder,
    bounds,
    index=None,
    count=3,
    head=None,
    dtype="float32",
    name=None,
    skipped=(),
    labels=True,
    parts=PARTS,
):
    """A cache of some rows of WHOLE, a shard where `index` says which."""
    start, stop = bounds
    path = folder / (name or f"part{index}.h5")
    encoded = Encoded(**{part: getattr(WHOLE.encoded, part)[start:stop] for part in parts})
    arrays = LatentFormat(logvar=True, dtype=dtype).stored(encoded, lambda row: WHOLE.ids[row])
    attributes = {
        **WHOLE.head(),
        "inputs": "list",
        "inputs_content": f"{start + 1:x}",
        "options": f'"{dtype}"',
    }
    if index is not None:
        attributes["shard"] = shard_json(Shard(index, count, start, stop, len(WHOLE)))
    write_stream(
        path,
        {**attributes, **(head or {})},
        {part: (values.shape[1], values.dtype) for part, values in arrays.items()},
        [arrays] if stop > start else [],
        ids=WHOLE.ids[start:stop],
        labels=WHOLE.labels[start:stop] if labels else None,
        skipped=skipped,
    )
    return path


@pytest.fixture
def parts(tmp_path):
    return [cut(tmp_path, bounds, index) for index, bounds in enumerate([(0, 4), (4, 8), (8, 11)])]


def refusal(paths, dtype=None):
    with pytest.raises(IiaeError) as caught:
        plan_merge(paths, dtype)
    assert caught.value.hint
    return caught.value.message, caught.value.hint


def content(path):
    with h5py.File(path) as file:
        found = {}
        file.visititems(
            lambda name, one: (
                found.update({name: one[()].tolist()}) if isinstance(one, h5py.Dataset) else None
            )
        )
        return found, {name: str(value) for name, value in file.attrs.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_merged_shards_are_the_undivided_cache_whatever_their_order(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(module, "COPY_BYTES", 200)  # a few rows at a time
    bounds = [(0, 4), (4, 8), (8, 11)]
    said = [["a: bad"], [], ["b: bad", "é: bad"]]
    paths = [
        cut(tmp_path, one, index, dtype=dtype, skipped=said[index])
        for index, one in enumerate(bounds)
    ]
    whole = cut(
        tmp_path,
        (0, 11),
        dtype=dtype,
        name="whole.h5",
        skipped=[line for lines in said for line in lines],
        head={"inputs_content": f"{1 + 5 + 9:016x}"},
    )
    merged = tmp_path / "merged.h5"
    ticks = []
    plan_merge([paths[2], paths[0], paths[1]]).write(merged, tick=lambda: ticks.append(1))
    assert content(merged) == content(whole) and len(ticks) > 4
    assert read_latents(merged).ids == WHOLE.ids and describe(merged).skipped == [
        "a: bad",
        "b: bad",
        "é: bad",
    ]


def test_an_empty_shard_file_is_a_part_like_others(tmp_path):
    paths = [cut(tmp_path, (0, 11), 0, 2), cut(tmp_path, (11, 11), 1, 2, skipped=["z: bad"])]
    plan_merge(paths).write(tmp_path / "merged.h5")
    assert read_latents(tmp_path / "merged.h5").ids == WHOLE.ids
    assert read_latents(paths[1]).encoded.shared_mean.shape == (0, 12)


def test_missing_and_doubled_shards_are_named(parts):
    message, hint = refusal([parts[0], parts[2]])
    assert message == "shard 1/3 is missing" and "--shard 1/3" in hint
    assert refusal(parts[1:2])[0] == "shards 0/3, 2/3 are missing"
    assert refusal([*parts, parts[1]])[0] == f"shard 1/3 is given twice: {parts[1]}, {parts[1]}"


@pytest.mark.parametrize(
    "other, said",
    [
        ({"head": {"fingerprint": "zzz"}}, "was encoded by another model than"),
        ({"head": {"domain": "x"}}, "holds domain x"),
        ({"head": {"inputs": "other"}}, "was encoded from another list of inputs than"),
        ({"head": {"options": "other"}}, "was encoded with other options than"),
        ({"dtype": "float16"}, "was encoded with other options than"),
        ({"count": 4}, "is shard 1/4"),
        ({"parts": ("shared_mean",)}, "holds other arrays than"),
        ({"labels": False}, "holds other arrays than"),
        ({"index": None, "name": "x.h5"}, "is no shard, others are"),
        ({"bounds": (5, 8)}, "begins at input 5, the shard before ends at 4"),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(tmp_path, parts, other, said):
    strange = cut(tmp_path, **{"bounds": (4, 8), "index": 1, **other})
    assert said in refusal([parts[0], strange, parts[2]])[0]


def test_caches_that_are_no_shards_are_joined_in_the_order_given(tmp_path):
    paths = [tmp_path / f"{seed}.h5" for seed in (1, 2)]
    caches = [cache_of(rows, seed) for rows, seed in ((3, 1), (2, 2))]
    for path, cache in zip(paths, caches, strict=True):
        write_latents(path, cache, logvar=True)
    plan_merge(paths[::-1]).write(tmp_path / "z.h5")
    merged = read_latents(tmp_path / "z.h5")
    assert (
        merged.ids == caches[1].ids + caches[0].ids
        and merged.labels == caches[1].labels + caches[0].labels
    )
    for part in PARTS:
        expected = np.concatenate(
            [getattr(caches[1].encoded, part), getattr(caches[0].encoded, part)]
        )
        np.testing.assert_array_equal(getattr(merged.encoded, part), expected)
    assert merged.source == caches[0].source
    assert refusal([paths[0], paths[0]])[0] == "id seed1/é0.png occurs in more than one place"
    write_latents(paths[1], cache_of(2, 2, source={"data": "other", "split": "test"}), logvar=True)
    plan_merge(paths).write(tmp_path / "z.h5")
    assert read_latents(tmp_path / "z.h5").source == {}


def test_number_formats_of_caches_are_kept_or_chosen(tmp_path):
    full, half = tmp_path / "full.h5", tmp_path / "half.h5"
    big = cache_of(2, 1)
    big.encoded.shared_mean[1, 1] = 1e6
    write_latents(full, big)
    write_latents(half, cache_of(2, 2), dtype="float16")
    kinds = {name: dtype for name, (_, dtype) in plan_merge([half]).arrays.items()}
    assert set(kinds.values()) == {np.dtype("float16")}
    assert plan_merge([half, full]).arrays["shared_mean"][1] == np.float32
    with pytest.raises(IiaeError, match="float16 cannot hold"):
        plan_merge([half, full], "float16").write(tmp_path / "z.h5")
    assert not (tmp_path / "z.h5").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.attrs.__setitem__("shard", "{broken"),
        lambda file: file.attrs.__setitem__("shard", json.dumps({"index": 0})),
        lambda file: file.attrs.__setitem__("inputs_content", "no hex"),
        lambda file: file.attrs.__delitem__("fingerprint"),
        lambda file: file.__delitem__("ids"),
        lambda file: (file.__delitem__("labels"), file.__setitem__("labels", ["a"])),
        lambda file: (
            file.__delitem__("shared/mean"),
            file.__setitem__("shared/mean", np.zeros((2, 12), "f4")),
        ),
        lambda file: (
            file.__delitem__("shared/mean"),
            file.__setitem__("shared/mean", np.zeros(4)),
        ),
        lambda file: (file.__delitem__("shared"), file.__delitem__("exclusive")),
        lambda file: file.__setitem__("skipped", np.zeros(3)),
    ],
    ids=range(10),
)
def test_a_damaged_shard_is_refused(parts, change):
    with h5py.File(parts[0], "a") as file:
        change(file)
    assert refusal(parts)[0].startswith(f"{parts[0]} is damaged")
