"""YAML as preset, as `--config`, as a run's configuration, in `--set` and in the environment."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from iiae_cli.config.presets import key_help
from malformed.cases import MAYBE, Making, each, flipped, malformed, truncated

KIND = "configurations"


def reading(make: Making, path: Path) -> list[object]:
    """As preset, on top of one, or as what a run was started with."""
    how = make.rng.randrange(4)
    if how == 0:
        return ["train", "--preset", path, "--print-config"]
    if how == 1:
        return ["train", "--preset", make.ground.preset, "--config", path, "--print-config"]
    if how == 2:
        return ["train", "--preset", path, "--data", make.ground.pictures, "--run", "out/run"]
    run = make.folder.parent / "work" / "out" / "run"
    shutil.copytree(make.ground.stopped, run)
    shutil.copyfile(path, run / "config.yaml")
    return [
        "train",
        "--preset",
        make.ground.preset,
        "--data",
        make.ground.pictures,
        "--run",
        "out/run",
        "--resume",
    ]


def laughs(depth: int, form: str) -> str:
    """Billion laughs: every line names the one before ten times."""
    lines = ["a0: &a0 " + ("{x: 1}" if form == "mapping" else "[lol]")]
    for one in range(1, depth):
        names = [f"*a{one - 1}"] * 10
        body = (
            ", ".join(names)
            if form == "list"
            else ", ".join(f"k{k}: {name}" for k, name in enumerate(names))
        )
        lines.append(f"a{one}: &a{one} " + (f"[{body}]" if form == "list" else "{" + body + "}"))
    return "\n".join(lines) + f"\ntraining: {{steps: *a{depth - 1}}}\nmodel: *a{depth - 1}\n"


@each(
    KIND,
    laughs(9, "list"),
    laughs(9, "mapping"),
    laughs(30, "mapping"),
    "a: &a [*a]\n",
    "model: &a {b: *a}\n",
    "training: &a\n  steps: *a\n",
    "training: {<<: &a {<<: *a}}\n",
    "a: *nowhere\n",
    "training: &a {steps: 1}\nmodel: {<<: [*a, *a, *a]}\n",
)
def aliases(make: Making, text: Any) -> list[object]:
    return reading(make, make.file("a.yaml", text))


@each(
    KIND,
    "!!python/object/apply:os.mknod [canary]\n",
    "training: !!python/object/apply:os.system ['touch canary']\n",
    "training: {steps: !!python/name:os.system }\n",
    "training: {steps: !!python/object:iiae_cli.config.schema.Config {}}\n",
    "!!python/module:os\n",
    "training: !unknown {steps: 1}\n",
    "%TAG ! tag:evil,2000:\n--- !x {}\n",
    "data: {set: !!binary '////'}\n",
    "data: {set: !!binary '*'}\n",
    "model: !!set {a, b}\n",
    "model: !!omap [a: 1]\n",
    "model: !!pairs [a: 1]\n",
    "training: {steps: !!int many}\n",
    "training: {steps: !!timestamp 9999-99-99}\n",
    "training: {steps: !!float x}\n",
    "training: {steps: !!bool perhaps}\n",
    "training: {steps: !!int ''}\n",
)
def tags(make: Making, text: Any) -> list[object]:
    return reading(make, make.file("a.yaml", text))


@each(
    KIND,
    b"\0",
    b"\xff\xfe",
    b"\xff\xfet\0r\0",
    b"data: {set: '\xff'}\n",
    b"a\0b: 1\n",
    b"\x89PNG\r\n\x1a\n" + bytes(100),
    b"training: [1\n",
    b"training:\n\t- 1\n",
    b"- a\n",
    b"text\n",
    b"3\n",
    b"3: 4\n",
    b"? [a]\n: b\n",
    b"? {a: b}\n: b\n",
    b"null: 1\n",
    b"true: 1\n",
    b"training: 5\n",
    b"training: [1, 2]\n",
    b"model: {widths: {a: 1}}\n",
    b"model: {widths: 5}\n",
    b"training: {1: 2}\n",
    b"training: {null: 2}\n",
    b"training: {steps: [1]}\n",
    b"training: {? [1] : 2}\n",
    b"a: 1\n---\nb: 2\n",
    b"training: {steps: 10, steps: 20}\n",
    b"training: {steps: 10}\ntraining: {seed: 1}\n",
    b"trainig: {steps: 10}\n",
    b"training: {stepps: 10}\n",
    b"'training.steps': 10\nnothing: 1\n",
    b"[" * 100_000,
    b"{a: " * 50_000,
    b"- " * 50_000,
    b"".join(b" " * n + b"a:\n" for n in range(2000)),
    b"a: '" + b"x" * (4 << 20) + b"'\n",
    b"".join(b"key%d: 1\n" % n for n in range(3000)),
    b"training: {steps: " + b"9" * 5000 + b"}\n",
    b"training: {steps: 0x" + b"f" * 60_000 + b"}\n",
    b"training: {steps: " + b"1:" * 3000 + b"1}\n",
    b"training: {seed: 0x" + b"f" * 5000 + b"}\n",
    b"training: {steps: .inf}\n",
    b"training: {steps: .nan}\n",
    b"training: {steps: 2001-01-01}\n",
    b"optimizer: {lr: 1" + b"0" * 4000 + b"}\n",
    b"extends: [digits-cdcb]\n",
    b"extends: 5\n",
    b"extends: nowhere\n",
    b"extends: nowhere.yaml\n",
    b"extends: /etc/passwd\n",
    b"extends: ../../../../../../etc/passwd.yaml\n",
    b"extends: a.yaml\n",
    b"extends: ./a.yaml\n",
    b"extends: .yaml\n",
    b"extends: '" + b"a" * 5000 + b".yaml'\n",
    b'extends: "a\\0.yaml"\n',
    b'data: {set: "\\ud800"}\ntrainig: 1\n',
    b'"line\\nerror: forged": 1\n',
    b"extends: ''\n",
)
def wrong_texts(make: Making, content: Any) -> list[object]:
    return reading(make, make.file("a.yaml", content))


@malformed(KIND, times=2)
def presets_in_a_circle(make: Making) -> list[object]:
    count = make.rng.randint(2, 30)
    for number in range(count):
        make.file(f"{number}.yaml", f"extends: {(number + 1) % count}.yaml\n")
    return ["train", "--preset", make.folder / "0.yaml", "--print-config"]


@malformed(KIND)
def a_chain_of_thousands_of_presets(make: Making) -> list[object]:
    for number in range(1500):
        make.file(f"{number}.yaml", f"extends: {number + 1}.yaml\n")
    return ["train", "--preset", make.folder / "0.yaml", "--print-config"]


VALUES = (
    "-1",
    "0",
    "1e999",
    ".nan",
    "[]",
    "[0]",
    "[-1]",
    "{}",
    "''",
    "text",
    "1.5",
    "[[1]]",
    "{a: 1}",
    "99999999999999999999",
)


@malformed(KIND, times=40, allowed=MAYBE)
def a_value_of_any_kind(make: Making) -> list[object]:
    """Some of these fit; those that do not are named."""
    chosen = [
        f"{make.rng.choice(list(key_help()))}={make.rng.choice(VALUES)}"
        for _ in range(make.rng.randint(1, 3))
    ]
    options = [part for one in chosen for part in ("--set", one)]
    return ["train", "--preset", make.ground.preset, "--print-config", *options]


HUGE = (
    *("model.widths=[1000000000,4]", "model.shared=1000000000000", "model.exclusive=100000000000"),
    *("model.decoder_widths=[4,100000000000]", "data.image_size=1000000000"),
    *(
        "training.seed=99999999999999999999",
        "training.batch_size=1000000000000",
        "training.threads=1000000000000",
    ),
    *(
        "model.widths=[9223372036854775807,4]",
        "model.shared=99999999999999999999",
        "training.threads=-1",
    ),
    *("training.device=cuda:99999999999999", "training.device=meta", "training.device=''"),
    *("model.stages=30", "selection.validate_on=valid9", "optimizer.lr=1e308"),
)


@each(KIND, *HUGE)
def more_than_any_machine_has(make: Making, assignment: Any) -> list[object]:
    base = [
        "train",
        "--preset",
        make.ground.preset,
        "--data",
        make.ground.pictures,
        "--run",
        "out/run",
    ]
    return [*base, "--set", assignment]


@each(
    KIND,
    "training.steps=99999999999999999999",
    "training.epochs=1e9999",
    "=",
    "=5",
    "training.seed",
    "a=b=c",
    "training.seed=[",
    "x" * 5000,
)
def odd_assignments(make: Making, assignment: Any) -> list[object]:
    return ["train", "--preset", make.ground.preset, "--print-config", "--set", assignment]


@each(
    KIND,
    "IIAE_SEED=many",
    "IIAE_TRAINING__SEEED=3",
    "IIAE_SEED=[1",
    "IIAE_MODEL__WIDTHS=!!python/name:os.system",
)
def an_odd_environment(make: Making, variable: Any) -> list[object]:
    name, _, value = str(variable).partition("=")
    make.environment[name] = value
    return ["train", "--preset", make.ground.preset, "--print-config"]


@each(KIND, "folder", "pipe", "/dev/zero", "circle")
def no_file_at_all(make: Making, what: Any) -> list[object]:
    import os

    path = make.folder / "a.yaml"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if what == "circle" else what)
    if make.rng.random() < 0.5:
        return ["train", "--preset", path, "--print-config"]
    return ["train", "--preset", make.ground.preset, "--config", path, "--print-config"]


@malformed(KIND, times=25, allowed=MAYBE)
def a_damaged_preset(make: Making) -> list[object]:
    """Damage in a comment or a number may leave a good preset."""
    content = make.ground.preset.read_bytes()
    content = (
        truncated(content, make.rng)
        if make.rng.random() < 0.2
        else flipped(content, make.rng, most=6)
    )
    path = make.file("a.yaml", content)
    return ["train", "--preset", path, "--print-config"]
