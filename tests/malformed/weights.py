"""Weights, checkpoints and run folders: of other models, with code in them, with false headers."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open

from iiae_cli.common.tensors import save_tensors
from malformed.arrays import Canary
from malformed.cases import MAYBE, Making, each, flipped, malformed, truncated

KIND = "weights"
RUNS = "run folders"


def run_with(make: Making, content: bytes | None) -> list[object]:
    """A command on a run whose model file is this."""
    run = make.folder / "run"
    shutil.copytree(make.ground.run, run)
    if content is not None:
        (run / "model.safetensors").write_bytes(content)
    return commands_on(make, run)


def commands_on(make: Making, run: Path) -> list[object]:
    return make.rng.choice(
        [
            ["encode", make.ground.pictures, "--domain", "x", "--run", run, "-o", "out/z.h5"],
            ["translate", make.ground.picture, "--from", "x", "--run", run, "-o", "out/t"],
            [
                "retrieve",
                make.ground.picture,
                "--run",
                run,
                "--index",
                make.ground.run / "gallery.h5",
            ],
            ["evaluate", "--run", run, "--data", make.ground.pictures, "--lpips", "none"],
        ]
    )


def parts_of(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Header and tensors of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def raw(head: object, content: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of any header."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@each(
    KIND,
    raw(b"", length=0),
    raw(b"{}", length=2**63),
    raw(b"{}", length=2**64 - 1),
    raw(b"{}", length=100_000_000),
    raw(b"{" + b" " * 1000 + b"}", length=10),
    raw(b"[" * 100_000),
    raw(b'{"a":' * 50_000),
    raw(b"\xff\xfe"),
    raw({}),
    raw([]),
    raw({"__metadata__": 5}),
    raw({"__metadata__": {"schema": 5}}),
    raw({"__metadata__": {"schema": "iiae.model/2"}}),
    raw({"a": F32, "b": F32}, bytes(8)),
    raw({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, bytes(12)),
    raw({"a": {**F32, "data_offsets": [8, 0]}}, bytes(8)),
    raw({"a": {**F32, "data_offsets": [0, 2**63]}}, bytes(8)),
    raw({"a": {**F32, "shape": [2**62, 4]}}, bytes(8)),
    raw({"a": {**F32, "shape": [-2]}}, bytes(8)),
    raw({"a": {**F32, "dtype": "F99"}}, bytes(8)),
    raw({"a": {**F32, "dtype": "F8_E4M3"}}, bytes(8)),
    raw({"a": F32}, bytes(4)),
    raw({"a": F32}, bytes(80)),
    b"",
    b"\0" * 7,
    b"{}",
    b"PK\x03\x04",
)
def a_false_header(make: Making, content: Any) -> list[object]:
    return run_with(make, content)


@malformed(KIND, times=3)
def weights_of_another_model(make: Making) -> list[object]:
    other = make.rng.choice(
        [make.ground.feature_run / "model.safetensors", newest(make.ground.run)]
    )
    return run_with(make, other.read_bytes())


@malformed(KIND, times=6)
def tensors_of_another_kind(make: Making) -> list[object]:
    """The header is right, a tensor is not."""
    header, tensors = parts_of(make.ground.run / "model.safetensors")
    name = make.rng.choice(sorted(name for name in tensors if tensors[name].numel() > 1))
    what = make.rng.randrange(6)
    if what == 0:
        del tensors[name]
    elif what == 1:
        tensors[f"{name}.more"] = torch.zeros(3)
    elif what == 2:
        tensors[name] = torch.zeros(7, 7)
    elif what == 3:
        tensors[name] = torch.full_like(tensors[name], float("nan"))
    elif what == 4:
        tensors[name] = tensors[name].to(torch.float64)
    else:
        tensors = {name.upper(): values for name, values in tensors.items()}
    return run_with(make, safetensors.torch.save(tensors, header))


@each(KIND, float("nan"), float("inf"), 3e38, allowed=frozenset({0, 2}))
def weights_that_are_not_finite(make: Making, value: Any) -> list[object]:
    """With the fingerprint of just these weights. Large ones may pass, as long as what comes of them is finite."""
    from iiae_cli.runs.weights import fingerprint_of

    header, tensors = parts_of(make.ground.run / "model.safetensors")
    tensors = {
        name: torch.full_like(t, value) if t.is_floating_point() else t
        for name, t in tensors.items()
    }
    header["fingerprint"] = fingerprint_of(tensors)
    arguments = run_with(make, safetensors.torch.save(tensors, header))
    return arguments


HEADERS: tuple[tuple[str, Any], ...] = (
    *(
        ("config", text)
        for text in (
            "",
            "5",
            "[]",
            "null",
            "{}",
            "[" * 100_000,
            '{"model": 5}',
            '{"model": {"kind": "x"}}',
        )
    ),
    *(("data", text) for text in ("", "5", "[]", "null", "{}", '{"name": 1}', "[" * 100_000)),
    *(("details", text) for text in ("", "5", "[]", "null", '"text"', "[" * 100_000)),
    ("fingerprint", "0"),
    *((name, None) for name in ("schema", "config", "data", "details", "fingerprint")),
)


@each(KIND, *HEADERS)
def metadata_of_another_kind(make: Making, entry: Any) -> list[object]:
    name, text = entry
    header, tensors = parts_of(make.ground.run / "model.safetensors")
    del header[name]
    if text is not None:
        header[name] = text
    return run_with(make, safetensors.torch.save(tensors, header))


@each(
    KIND,
    *(
        [10**9, 10**9, 3],
        [16, 16],
        [16, 16, 0],
        [0, 0, 3],
        [16, 16, -3],
        [16, 16, "3"],
        [1e30] * 3,
        [16.5, 16, 3],
        [12],
    ),
    *(
        ["a"],
        [[16], 16, 3],
        [],
        5,
        "abc",
        {"a": 1},
        [16, 16, 10**12],
        [True, True, True],
        [2**70, 16, 3],
    ),
)
def shapes_of_no_picture(make: Making, shape: Any) -> list[object]:
    header, tensors = parts_of(make.ground.run / "model.safetensors")
    header["data"] = json.dumps(
        {"name": "mine", "shape_x": shape, "shape_y": make.rng.choice([shape, [16, 16, 3]])}
    )
    return run_with(make, safetensors.torch.save(tensors, header))


@each(
    KIND,
    *(
        {"model.widths": [10**9, 4]},
        {"model.shared": 10**12},
        {"model.exclusive": 10**10},
        {"model.kind": "flat"},
    ),
    *(
        {"model.widths": [4] * 50_000, "model.decoder_widths": [4] * 50_000},
        {"model.kind": "features"},
    ),
    *(
        {"model.stages": 60},
        {"data.image_size": 10**9},
        {"model.flat_width": 10**12, "model.kind": "flat"},
    ),
    *(
        {"model.widths": "aa"},
        {"model.dropout": 5},
        {"objective.kind": "ii"},
        {"data.image_size": 2**70},
    ),
)
def a_configuration_of_another_model(make: Making, changes: Any) -> list[object]:
    header, tensors = parts_of(make.ground.run / "model.safetensors")
    config = json.loads(header["config"])
    for key, value in changes.items():
        section, name = key.split(".")
        config[section][name] = value
    header["config"] = json.dumps(config)
    return run_with(make, safetensors.torch.save(tensors, header))


@malformed(KIND, times=10)
def truncated_weights(make: Making) -> list[object]:
    return run_with(make, truncated((make.ground.run / "model.safetensors").read_bytes(), make.rng))


@malformed(KIND, times=20)
def damaged_weights(make: Making) -> list[object]:
    """The fingerprint tells what the header does not."""
    return run_with(make, flipped((make.ground.run / "model.safetensors").read_bytes(), make.rng))


# ---- pickles


class Loaded:
    """A state dict with code in it."""

    def __init__(self, path: Path) -> None:
        self.state = {"features.0.weight": torch.zeros(3), "code": Canary(path)}


def saved(make: Making, value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def tar_of(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle", "sys_info"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zip_of(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/constants.pkl", content)
        archive.writestr("archive/code/__torch__.py", "import os\nos.mknod('canary')\n")
    return file.getvalue()


PICKLES: tuple[Any, ...] = (
    lambda make: saved(make, Loaded(make.canary).state),
    lambda make: saved(make, Loaded(make.canary).state, _use_new_zipfile_serialization=False),
    lambda make: saved(make, torch.nn.Linear(2, 2)),
    lambda make: saved(make, {"state_dict": Canary(make.canary)}),
    lambda make: pickle.dumps(Canary(make.canary)),
    lambda make: pickle.dumps(Canary(make.canary), protocol=0),
    lambda make: pickle.dumps({"a": Canary(make.canary)}, protocol=4),
    lambda make: tar_of(pickle.dumps(Canary(make.canary))),
    lambda make: zip_of(pickle.dumps(Canary(make.canary))),
    lambda make: saved(make, [1, 2, 3]),
    lambda make: saved(make, {"a": 5}),
    lambda make: saved(make, {5: torch.zeros(3)}),
    lambda make: saved(make, {"features.0.weight": torch.zeros(1, 3, 3, 3)}),
    lambda make: b"\x80\x02" + b"(" * 100_000,
    lambda make: b"\x80\x04\x8e" + struct.pack("<Q", 2**62),
    lambda make: b"",
    lambda make: b"\x80",
    lambda make: truncated(saved(make, {"a": torch.zeros(100)}), make.rng),
    lambda make: flipped(saved(make, {"a": torch.zeros(100)}), make.rng),
    lambda make: flipped(
        saved(make, {"a": torch.zeros(100)}, _use_new_zipfile_serialization=False), make.rng
    ),
)


@each(KIND, *PICKLES)
def a_pickle_as_weights(make: Making, content: Any) -> list[object]:
    """As a run's model, as a backbone, or as the network of LPIPS."""
    how = make.rng.randrange(3)
    if how == 0:
        return run_with(make, content(make))
    path = make.file(make.rng.choice(["w.pth", "w.pt", "w.safetensors", "w"]), content(make))
    return as_weights(make, path, how)


def as_weights(make: Making, path: Path, how: int) -> list[object]:
    if how == 1:
        for split in ("train", "test"):
            for domain in "xy":
                for one in "ab":
                    place = make.folder / "set" / split / domain / f"{split}{one}"
                    place.mkdir(parents=True)
                    shutil.copyfile(make.ground.picture, place / "1.png")
        backbone = ("--backbone", "squeezenet1_1", "--backbone-weights", path)
        return ["prepare", "classes", make.folder / "set", *backbone, "-o", "out/c.h5"]
    evaluate = [
        "evaluate",
        "--run",
        make.ground.run,
        "--data",
        make.ground.pictures,
        "--task",
        "translation",
    ]
    return [*evaluate, "--lpips-weights", path]


@malformed(KIND, times=20)
def damaged_pickles(make: Making) -> list[object]:
    content = saved(
        make,
        {"features.0.weight": torch.zeros(5, 5)},
        _use_new_zipfile_serialization=make.rng.random() < 0.5,
    )
    return as_weights(
        make, make.file("w.pth", flipped(content, make.rng, most=12)), make.rng.choice([1, 2])
    )


# ---- run folders


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("*.safetensors"))


def resuming(make: Making, run_source: Path | None = None) -> tuple[Path, list[object]]:
    """A copy of the run that was stopped, at its output's place, and the command that continues it."""
    run = make.folder.parent / "work" / "out" / "run"
    shutil.copytree(run_source or make.ground.stopped, run)
    settings = ("--set", "training.checkpoint_every=1")
    base = [
        "train",
        "--preset",
        make.ground.preset,
        "--data",
        make.ground.pictures,
        "--run",
        "out/run",
        *settings,
    ]
    return run, [*base, "--resume"]


@malformed(RUNS, times=2, allowed=frozenset({0}))
def a_good_run(make: Making) -> list[object]:
    return resuming(make)[1]


CHECKPOINT_HEADERS: tuple[tuple[str, Any], ...] = (
    *(("step", text) for text in ("", "-5", "many", "1.5", "9" * 5000, "99999999", None)),
    *(
        ("progress", text)
        for text in ("", "5", "[]", "null", '{"unknown": 1}', "[" * 100_000, None)
    ),
    *(
        ("progress", text)
        for text in (
            '{"kept_step": "a"}',
            '{"refit_steps": "a"}',
            '{"warnings": 5}',
            '{"best": []}',
        )
    ),
    *(("schema", text) for text in ("", "iiae.model/1", None)),
)


@each(RUNS, *CHECKPOINT_HEADERS, allowed=frozenset({0, 2}))
def a_checkpoint_with_a_false_header(make: Making, entry: Any) -> list[object]:
    """A step beyond the end is the end."""
    run, arguments = resuming(make)
    header, tensors = parts_of(newest(run))
    name, text = entry
    del header[name]
    if text is not None:
        header[name] = text
    path = newest(run)
    (save_tensors if "schema" in header else safetensors.torch.save_file)(tensors, path, header)
    return arguments


@malformed(RUNS, times=10)
def a_checkpoint_with_other_tensors(make: Making) -> list[object]:
    run, arguments = resuming(make)
    header, tensors = parts_of(newest(run))
    part = make.rng.choice(["model", "optimizer"])
    name = make.rng.choice(
        sorted(one for one in tensors if one.startswith(part) and tensors[one].ndim)
    )
    what = make.rng.randrange(6)
    if what == 0:
        del tensors[name]
    elif what == 1:
        tensors["nowhere"] = torch.zeros(3)
    elif what == 2:
        tensors["other/part"] = torch.zeros(3)
    elif what == 3:
        tensors[name] = torch.zeros(7, 7, 7)
    elif what == 4:
        tensors[name] = torch.full_like(tensors[name], float("nan"))
    else:
        tensors = {f"model/{one}": values for one, values in tensors.items()}
    path = newest(run)
    (save_tensors if "schema" in header else safetensors.torch.save_file)(tensors, path, header)
    return arguments


@malformed(RUNS, times=4)
def a_checkpoint_of_another_model(make: Making) -> list[object]:
    run, arguments = resuming(make)
    newest(run).write_bytes(newest(make.ground.feature_run).read_bytes())
    return arguments


@malformed(RUNS, times=8, allowed=MAYBE)
def a_damaged_checkpoint(make: Making) -> list[object]:
    """An older one may be there to continue from."""
    run, arguments = resuming(make)
    content = newest(run).read_bytes()
    newest(run).write_bytes((truncated if make.rng.random() < 0.5 else flipped)(content, make.rng))
    return arguments


@malformed(RUNS, times=3)
def a_checkpoint_that_is_a_pickle(make: Making) -> list[object]:
    run, arguments = resuming(make)
    newest(run).write_bytes(saved(make, {"model/a": Canary(make.canary)}))
    return arguments


@each(RUNS, "folder", "pipe", "circle", "/dev/zero", allowed=MAYBE)
def a_checkpoint_that_is_no_file(make: Making, what: Any) -> list[object]:
    run, arguments = resuming(make)
    path = newest(run)
    path.unlink()
    odd(path, what)
    return arguments


def odd(path: Path, what: Any) -> None:
    """Something at a place where a file belongs."""
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path.name if what == "circle" else what)


@each(RUNS, "folder", "pipe", "circle", "/dev/zero")
def a_model_that_is_no_file(make: Making, what: Any) -> list[object]:
    run = make.folder / "run"
    shutil.copytree(make.ground.run, run)
    (run / "model.safetensors").unlink()
    odd(run / "model.safetensors", what)
    return commands_on(make, run)


@each(
    RUNS,
    b"\xff\xfe\n",
    b"[" * 100_000 + b"\n",
    b"{}\n",
    b'{"step": "a"}\n',
    b'{"step": 1e999}\n',
    b"\0" * 100,
    allowed=MAYBE,
)
def metrics_of_no_lines(make: Making, content: Any) -> list[object]:
    """Lines that cannot be read are dropped as torn ones are."""
    run, arguments = resuming(make)
    (run / "metrics.jsonl").write_bytes(content)
    return arguments


@each(
    RUNS,
    "checkpoints",
    "samples",
    "tensorboard",
    "metrics.jsonl",
    "run.json",
    "config.yaml",
    "gallery.h5",
    allowed=MAYBE,
)
def a_link_that_leads_out(make: Making, name: Any) -> list[object]:
    """Nothing is written or removed where it leads."""
    run, arguments = resuming(make)
    outside = make.folder / "outside"
    place = run / str(name)
    if place.is_dir():
        shutil.move(place, outside)
        make.file("outside/mine.txt", "precious")
    elif place.exists():
        shutil.move(place, outside)
    place.unlink(missing_ok=True)
    place.symlink_to(outside)
    return [*arguments[:-1], "--overwrite"] if make.rng.random() < 0.5 else arguments


@each(
    RUNS,
    "checkpoints",
    "samples",
    "tensorboard",
    "metrics.jsonl",
    "config.yaml",
    "run.json",
    "gallery.h5",
    allowed=MAYBE,
)
def something_else_in_its_place(make: Making, name: Any) -> list[object]:
    run, arguments = resuming(make)
    place = run / str(name)
    if place.is_dir():
        shutil.rmtree(place)
        place.write_bytes(b"a file")
    else:
        place.unlink(missing_ok=True)
        place.mkdir()
        (place / "mine.txt").write_bytes(b"precious")
    return [*arguments[:-1], "--overwrite"] if make.rng.random() < 0.5 else arguments


@malformed(RUNS, times=2, allowed=MAYBE)
def folders_among_its_files(make: Making) -> list[object]:
    run, arguments = resuming(make)
    for name in ("checkpoints", "samples", "tensorboard"):
        (run / name / "inner").mkdir(parents=True)
        (run / name / "inner" / "mine.txt").write_bytes(b"precious")
    return [*arguments[:-1], "--overwrite"]


@each(RUNS, "a file", "/dev/null", "circle")
def a_run_that_is_no_folder(make: Making, what: Any) -> list[object]:
    run = make.folder.parent / "work" / "out"
    run.mkdir()
    if what == "a file":
        (run / "run").write_bytes(b"mine")
    else:
        (run / "run").symlink_to("run" if what == "circle" else what)
    if make.rng.random() < 0.5:
        return ["evaluate", "--run", "out/run"]
    options = make.rng.choice(["--resume", "--overwrite"])
    return [
        "train",
        "--preset",
        make.ground.preset,
        "--data",
        make.ground.pictures,
        "--run",
        "out/run",
        options,
    ]
