"""Damaged and hostile files: an exit code and two lines; no traceback, no hang, no code run,
nothing written elsewhere.

Every kind of file that a command reads starts from a good small one, is damaged, and is read again.
"""

import pickle
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
from contextlib import chdir, contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from class_sources import feature_arrays
from helpers import call
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from iiae_cli.common.tensors import read_tensors, save_tensors
from iiae_cli.data.datafile import Side, Split, write_data_file
from iiae_cli.runs import CHECKPOINT_SCHEMA, MODEL_SCHEMA

SECONDS = 30
MEMORY = 3 << 30
RNG = np.random.default_rng(0)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bounds memory as Linux does")

PRESET = """
model: {kind: image, widths: [4, 4], decoder_widths: [4, 4], shared: 4, exclusive: 2, dropout: 0}
training: {steps: 2, batch_size: 4, checkpoint_every: 1, log_every: 2, samples: 1}
"""
FEATURES = """
model: {kind: features, feature_width: 8, exclusive_hidden: [8], shared_hidden: 8, joint_hidden: 8,
        decoder_hidden: 8, shared: 4, exclusive: 2}
training: {steps: 2, batch_size: 4}
objective: {reconstruction: l2}
"""


# ---- good files


def split(count, *shape):
    """Random pictures, or features of four classes."""
    ids = [f"some/{number:03d}" for number in range(count)]
    labels = [f"class {number % 4}" for number in range(count)]
    rows = RNG.integers(0, 256, (2, count, *shape))
    x, y = rows.astype(np.uint8) if len(shape) > 1 else rows.astype(np.float32) / 64
    factors = {"x_colour": x[:, 0, 0]} if len(shape) > 1 else {}
    return Split(Side(x, ids, labels), Side(y, ids, labels), factors)


def archive(path, picture):
    """Pictures side by side, as facades.tar.gz."""
    with tarfile.open(path, "w:gz") as file:
        for name in ("train", "val", "test"):
            file.add(picture, f"facades/{name}/1.png")


def good(command):
    assert call(*command.split()).code == 0


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder with a good file of every kind, and the runs that they are read with."""
    folder = tmp_path_factory.mktemp("sound")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(folder)
    Path("p.yaml").write_text(PRESET)
    Path("f.yaml").write_text(FEATURES)
    pictures = {"train": split(12, 16, 16, 3), "test": split(8, 16, 16, 3)}
    write_data_file(Path("p.h5"), "p", pictures, {})
    features = {"train": split(16, 6), "test": split(8, 6)}
    write_data_file(Path("f.h5"), "f", features, {"alignment": "class", "backbone": "{}"})
    good("train --preset p.yaml --data p.h5 --run run")
    good("train --preset f.yaml --data f.h5 --run features")
    good("encode p.h5 --domain x --run run -o x.h5")
    good("encode p.h5 --domain x --run run -o x-part.h5 --shard 0/1")
    shutil.copy("run/model.safetensors", "model.safetensors")
    checkpoints = sorted(Path("run/checkpoints").glob("*.safetensors"))
    shutil.copytree("run", "stopped", symlinks=True)
    Path("stopped/checkpoints", checkpoints[-1].name).unlink()
    shutil.copy(checkpoints[0], "checkpoint.safetensors")
    for name in ("a.png", "a.jpg"):
        Image.fromarray(RNG.integers(0, 256, (16, 16, 3), np.uint8)).save(name)
    np.save("a.npy", RNG.normal(size=(5, 6)).astype(np.float32))
    np.savez("a.npz", **feature_arrays({"train": ["ant", "bee"], "test": ["cat"]}))
    shape = (128, 128, 3, 24, 4)
    savemat("car_001_mesh.mat", {"im": np.zeros(shape, np.uint8)}, do_compression=True)
    archive("facades.tar.gz", "a.png")
    row = f"{folder / 'a.png'},{folder / 'a.jpg'},train,ant,3"
    Path("pairs.csv").write_text(f"x,y,split,label,x_size\n{row}\n")
    yield folder
    monkeypatch.undo()


# ---- damage


class Canary:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return Path.touch, (Path("canary"),)


def damaged_bytes(draw, content):
    """Content cut, overwritten in one place or several, or replaced."""
    how = draw(st.sampled_from(["cut", "flip", "head", "pickle", "noise"]))
    if how == "pickle":
        return pickle.dumps(Canary())
    if how == "noise":
        return draw(st.binary(max_size=200))
    places = st.integers(0, min(len(content), 512 if how == "head" else len(content)) - 1)
    if how == "cut":
        return content[: draw(places)]
    damaged = bytearray(content)
    for place in draw(st.lists(places, min_size=1, max_size=8)):
        damaged[place] ^= draw(st.integers(1, 255))
    return bytes(damaged)


VALUES = [
    *(np.float64("nan"), -1, "", "x" * 5000, h5py.Empty("f4"), np.zeros((0, 3), np.float32)),
    "\udcff".encode("utf-8", "surrogateescape"),
    np.full((7, 3), np.inf, np.float32),
    np.zeros(8, [("a", "i4"), ("b", "S3")]),
    np.array(["a", "b"] * 4, h5py.string_dtype()),
]


def damage_structure(draw, path):
    """Replace an item or an attribute of an HDF5 file by something else."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = draw(st.sampled_from(sorted(names)))
        value = draw(st.integers(0, len(VALUES) - 1))
        how = draw(st.sampled_from(["delete", "group", "value", "link", "soft", "huge", "attr"]))
        if how == "attr":
            holder = draw(st.sampled_from([file, file[name]]))
            key = draw(st.sampled_from(sorted([*holder.attrs, "schema"])))
            holder.attrs[key] = VALUES[value]
            return
        shape = getattr(file[name], "shape", ())
        del file[name]
        if how == "huge":  # declared, not stored
            file.create_dataset(name, (2**40, *shape[1:]), "u1", chunks=True)
        elif how == "group":
            file.create_group(name)
        elif how != "delete":
            elsewhere = h5py.ExternalLink(str(path.parent / "secret.h5"), "/rows")
            links = {"link": elsewhere, "soft": h5py.SoftLink(f"/{name}")}
            file[name] = links.get(how, VALUES[value])


def damage_header(draw, path, schema):
    """Replace a value in the header of weights, with a checksum that fits."""
    header, tensors = read_tensors(path, schema, "")
    key = draw(st.sampled_from(sorted(header)))
    header[key] = draw(st.sampled_from(["", "null", "{}", "[1]", '{"x": 1}', "9" * 400, "\0"]))
    header.pop("checksum", None)
    if draw(st.booleans()):
        tensors.pop(draw(st.sampled_from(sorted(tensors))))
    save_tensors(tensors, path, header)


# ---- what reads which file

# The file of `sound` that is damaged, and the commands that read it in an otherwise empty folder.
READERS = {
    "p.h5": [
        "evaluate --run {sound}/run --data {path} --lpips none",
        "encode {path} --domain x --run {sound}/run -o out/z.h5",
        "train --preset {sound}/p.yaml --data {path} --run out/r",
        "translate {path} --from x --run {sound}/run -o out/t",
    ],
    "f.h5": [
        "evaluate --run {sound}/features --data {path}",
        "train --preset {sound}/f.yaml --data {path} --run out/r",
    ],
    "x.h5": [
        "retrieve {path} --index {sound}/run/gallery.h5",
        "retrieve {sound}/x.h5 --index {path} --latents exclusive",
    ],
    "x-part.h5": ["encode {path} --merge -o out/z.h5"],
    "model.safetensors": ["encode {sound}/a.png --domain x -o out/z.h5 --run out/run"],
    "checkpoint.safetensors": [
        "train --preset {sound}/p.yaml --data {sound}/p.h5 --resume --run out/run"
    ],
    "a.png": ["encode {path} --domain x --run {sound}/run -o out/z.h5"],
    "a.jpg": ["retrieve {path} --run {sound}/run --montage out/m.png"],
    "a.npy": ["encode {path} --domain x --run {sound}/features -o out/z.h5"],
    "a.npz": ["prepare classes {path} -o out/d.h5"],
    "car_001_mesh.mat": ["prepare cars in -o out/d.h5 --image-size 16 --limit 1"],
    "facades.tar.gz": ["prepare facades {path} -o out/d.h5"],
    "p.yaml": [
        "train --preset {path} --print-config",
        "train --preset digits-cdcb --config {path} --print-config",
    ],
    "pairs.csv": ["prepare pairs {path} -o out/d.h5"],
}
# Files that are read as part of a run: the run of `sound`, and their place in it.
IN_RUNS = {
    "model.safetensors": ("run", "model.safetensors"),
    "checkpoint.safetensors": ("stopped", "checkpoints/*.safetensors"),
}


@contextmanager
def bounds():
    """No more than so much time and memory."""

    def too_long(number, frame):
        raise TimeoutError(f"it took more than {SECONDS} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)


def listing(folder):
    """Files and folders but those that the command may write."""
    return {path for path in folder.rglob("*") if path.relative_to(folder).parts[0] != "out"}


def read_damaged(sound, name, command, damage):
    """Damage a copy of a good file and run a command on it in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        path = Path("in", name)
        path.parent.mkdir()
        Path("out").mkdir()
        shutil.copy(sound / name, path)
        damage(path)
        if name in IN_RUNS:
            run, place = IN_RUNS[name]
            shutil.copytree(sound / run, "out/run", symlinks=True)
            shutil.copy(path, next(Path("out/run").glob(place)))
        files = listing(Path(folder))
        with bounds():
            outcome = call(*command.format(sound=sound, path=path).split())
        assert outcome.code in (0, 2, 3) and "Traceback" not in outcome.err, outcome.err
        if outcome.code == 2:
            outcome.error()  # two lines
        assert listing(Path(folder)) == files
        return outcome


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_answered(sound, name, monkeypatch):
    monkeypatch.setenv("IIAE_DATA", "out/data")

    @settings(max_examples=20)
    @given(st.data())
    def answered(data):
        def damage(path):
            if path.suffix == ".h5" and data.draw(st.integers(0, 2)):
                damage_structure(data.draw, path)
            elif path.suffix == ".safetensors" and data.draw(st.booleans()):
                schema = MODEL_SCHEMA if name.startswith("model") else CHECKPOINT_SCHEMA
                damage_header(data.draw, path, schema)
            else:
                path.write_bytes(damaged_bytes(data.draw, path.read_bytes()))

        read_damaged(sound, name, data.draw(st.sampled_from(READERS[name])), damage)

    for command in READERS[name]:
        outcome = read_damaged(sound, name, command, lambda path: None)
        assert outcome.code == 0, outcome.err  # whole, it is read
    answered()
