"""Exports a run: its weights, a model card, and graphs for other programs, in one folder.

Rows are pictures (N, H, W, C) at the model's size, uint8 in and floats in [0, 1] out, or features
(N, F). Latents are posterior means, shared (N, S) and exclusive (N, E).
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from functools import partial
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import write_text, writing
from iiae_cli.data.batches import from_stored
from iiae_cli.inference.trained import inference
from iiae_cli.model import DOMAINS, Domain, other_domain
from iiae_cli.model.iiae import IIAE
from iiae_cli.runs import LoadedModel, RunDir

Format: TypeAlias = Literal["safetensors", "onnx", "torch"]
Run: TypeAlias = Callable[[Sequence[Tensor]], Sequence[NDArray[Any]]]
TOLERANCE = 1e-4  # the most that a graph's values may differ from the model's
TASKS = ("retrieval", "zero_shot", "translation", "disentanglement")
BATCH = torch.export.Dim("batch")
_ROWS = 5  # rows compared


class _Part(nn.Module):
    """A copy of a network without the layers that only other parts need."""

    unused: tuple[str, ...] = ()

    def __init__(self, network: IIAE, domain: Domain) -> None:
        super().__init__()
        self.network, self.domain = deepcopy(network), domain
        for name in ("joint_shared", "shared_decoder", *self.unused):
            delattr(self.network, name)
        for part in self.network.children():
            if isinstance(part, nn.ModuleDict) and other_domain(domain) in part:
                del part[other_domain(domain)]


class Encoder(_Part):
    """Rows of a domain to its latents."""

    unused = ("decoder",)

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Returns shared means and, if there are any, exclusive ones."""
        inputs, network = from_stored(rows, None), self.network
        shared = network.encode_shared(self.domain, inputs).mean.flatten(1)
        if not network.exclusive_dim:
            return (shared,)
        return shared, network.encode_exclusive(self.domain, inputs).mean


class Decoder(_Part):
    """Latents to rows of a domain."""

    unused = ("features", "shared", "exclusive")

    def forward(self, shared: Tensor, exclusive: Tensor | None = None) -> tuple[Tensor]:
        """Returns means of p(·|z, z^s)."""
        decoded = self.network.decode(self.domain, shared, exclusive)
        if decoded.ndim == 4:
            decoded = decoded.permute(0, 2, 3, 1).add(1).div(2).clamp(0, 1)
        return (decoded,)


def write_export(
    loaded: LoadedModel, run: RunDir, folder: Path, form: Format, card: str
) -> dict[str, float]:
    """Writes a run's weights, configuration, model card and graphs into a folder.

    Returns each graph's `largest_difference` from the model. Raises IiaeError if it exceeds
    `TOLERANCE`, or a library is missing.
    """
    if form == "onnx" and not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        raise IiaeError("onnx is not installed", "pip install 'iiae-cli[onnx]'")
    differences = {}
    for stale in folder.glob("*coder-[xy].*"):  # from another run or format
        stale.unlink()
    for name, (module, examples) in graphs(loaded).items() if form != "safetensors" else ():
        path = folder / f"{name}.{'onnx' if form == 'onnx' else 'pt2'}"
        with writing(path) as temporary, inference(loaded.model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own parts
            few = tuple(rows[:2] for rows in examples)  # more are compared: the batch is free
            free = tuple({0: BATCH} for _ in few)
            program = torch.export.export(module, few, dynamic_shapes=free)
            write = _write_onnx if form == "onnx" else _write_program
            answers, wanted = write(program, temporary)(examples), module(*examples)
            difference = differences[path.name] = largest_difference(answers, wanted)
            if not difference <= TOLERANCE:
                raise IiaeError(
                    f"{path} differs from the model by {difference:.2g}, more than {TOLERANCE}",
                    "export with --format safetensors or torch, which need no other program",
                )
    with writing(folder / run.model_file.name) as temporary:
        shutil.copyfile(run.model_file, temporary)
    write_text(folder / run.config_file.name, loaded.config.to_yaml())
    write_text(folder / "README.md", card)
    return differences


def largest_difference(answers: Sequence[NDArray[Any]], wanted: Sequence[Tensor]) -> float:
    """Returns the largest difference of any value, relative to an output's largest one above 1."""
    pairs = zip(answers, (values.numpy() for values in wanted), strict=True)
    return float(np.max([np.abs(a - b).max() / max(1.0, np.abs(b).max()) for a, b in pairs]))


def graphs(loaded: LoadedModel) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """Returns a model's encoders and decoders on the CPU by name, each with example inputs."""
    network, info = loaded.model, loaded.info
    draw = torch.Generator().manual_seed(0)
    parts: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {}
    for domain, shape in zip(DOMAINS, (info.shape_x, info.shape_y), strict=True):
        if loaded.size is None:
            rows = torch.randn((_ROWS, *shape), generator=draw)
        else:
            size = (_ROWS, *loaded.size, shape[-1])
            rows = torch.randint(0, 256, size, generator=draw, dtype=torch.uint8)
        encoder = Encoder(network, domain).eval()
        parts[f"encoder-{domain}"] = encoder, (rows,)
        if network.generative:
            latents = tuple(values.detach() for values in encoder(rows))
            parts[f"decoder-{domain}"] = Decoder(network, domain).eval(), latents
    return parts


def _write_program(program: ExportedProgram, path: Path) -> Run:
    """Writes a .pt2 file for `torch.export.load`; returns a function that runs it."""
    with path.open("w+b") as file:
        torch.export.save(program, file)
        file.seek(0)
        stored = torch.export.load(file).module()
    return lambda inputs: [output.numpy() for output in stored(*inputs)]


def _write_onnx(program: ExportedProgram, path: Path) -> Run:
    """Writes an .onnx file; returns a function that runs it in onnxruntime."""
    import onnxruntime

    signature = program.graph_signature
    names = ["shared", "exclusive"] if "rows" in signature.user_inputs else ["rows"]
    names = names[: len(signature.user_outputs)]
    free = tuple({0: BATCH} for _ in signature.user_inputs)  # again, for the dimension's name
    with redirect_stdout(sys.stderr):
        graph = torch.onnx.export(
            program, output_names=names, dynamic_shapes=free, dynamo=True, verbose=False
        )
    assert graph is not None
    graph.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = [item.name for item in session.get_inputs()]
    return lambda inputs: session.run(
        None, {name: values.numpy() for name, values in zip(given, inputs, strict=True)}
    )


def model_card(loaded: LoadedModel, license_id: str, figures: Mapping[str, Any] | None) -> str:
    """Returns README.md; `figures` is the output of `iiae evaluate --json` for this run."""
    info, details = loaded.info, loaded.details
    about = {
        "fingerprint": loaded.fingerprint,
        "preset": details.get("preset"),
        "data": info.name,
        "shape_x": list(info.shape_x),
        "shape_y": list(info.shape_y),
        "size": loaded.size and list(loaded.size),
        "classes_seen": details.get("train_classes"),
        "backbone": json.loads(info.attributes.get("backbone", "null")),
        "validation": details.get("validation"),
        "evaluation": figures and {key: figures[key] for key in TASKS if figures.get(key)},
    }
    known = {key: value for key, value in about.items() if value}
    tags = ["cross-domain-retrieval", "disentanglement", "iiae"]
    header = {"license": license_id, "library_name": "iiae-cli", "tags": tags}
    dump = partial(yaml.safe_dump, sort_keys=False, allow_unicode=True, default_flow_style=None)
    card = files("iiae_cli.inference").joinpath("card.md").read_text(encoding="utf-8")
    return card.format(dump(header), dump(known), name=details.get("preset") or info.name)
