"""Measures translations by trained networks: LPIPS, and a judge that reads class and factors.

Pixel errors punish a correct picture that is shifted by one pixel and forgive a blurred one. A
judge trained on real pictures answers what a person would ask: is the class kept, the colour taken?
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.tensors import read_state_dict
from iiae_cli.data.batches import PairOrder
from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.retrieval import DIRECTIONS
from iiae_cli.evaluation.translation import Figures, Measure, Subject
from iiae_cli.inference.neighbours import slices
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.model import Domain

LpipsNet: TypeAlias = Literal["alex", "vgg"]
Array: TypeAlias = NDArray[Any]

WEIGHTS_SERVER = "https://download.pytorch.org/models"
JUDGE_STEPS = 1500
_JUDGE_SIDE = 64  # pixels; longer sides are shrunk to it


# ---- LPIPS


class _Backbone(NamedTuple):
    figure: str
    architecture: str  # torchvision's name
    file_name: str  # torchvision's ImageNet weights in the hub cache
    least_side: int  # pixels; with fewer some layer has no output


BACKBONES: dict[LpipsNet, _Backbone] = {
    "alex": _Backbone("lpips", "alexnet", "alexnet-owt-7be5be79.pth", 31),
    "vgg": _Backbone("lpips_vgg", "vgg16", "vgg16-397923af.pth", 16),
}


def lpips_measures(
    files: Sequence[Path],
    device: torch.device | str,
    nets: Sequence[LpipsNet],
    *,
    download: bool = False,
) -> dict[str, Measure]:
    """Returns measures by figure, for networks whose weights are given or in torch's hub cache.

    Files are recognised by their content. `download` fetches missing weights into the cache.
    """
    given = dict(_read_weights(path, tuple(BACKBONES)) for path in files)
    measures: dict[str, Measure] = {}
    for net in nets:
        state = given[net] if net in given else _cached_weights(net, download)
        if state:
            measures[BACKBONES[net].figure] = lpips(net, state, device)
    return measures


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _cached_weights(net: LpipsNet, download: bool) -> dict[str, Tensor] | None:
    """Reads weights from torch's cache, downloaded if need be; None with a warning if missing."""
    figure, _, name, _ = BACKBONES[net]
    path, url = _cache() / name, f"{WEIGHTS_SERVER}/{name}"
    if not path.exists() and not download:
        how = "add --download, or pass --lpips-weights FILE"
        console.warn(f"no {figure}: {path} does not exist ({how})")
        return None
    if not path.exists():
        try:  # the name ends in the start of the checksum
            torch.hub.load_state_dict_from_url(
                url, progress=sys.stderr.isatty(), check_hash=True, weights_only=True
            )
        except (OSError, RuntimeError) as error:
            hint = f"run the same command again, or fetch {name} elsewhere: --lpips-weights FILE"
            raise IiaeError(f"{url} could not be downloaded: {error}", hint) from error
    return _read_weights(path, [net])[1]


def lpips(net: LpipsNet, state: dict[str, Tensor], device: torch.device | str) -> Measure:
    """Returns LPIPS v0.1 (Zhang et al., CVPR 2018), "the updated version" of the paper.

    Grey is repeated, channels past the third are left out. Small pictures are enlarged bilinearly
    by a whole factor; such figures compare among themselves only.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    backbone, hub = BACKBONES[net], torch.hub.get_dir()
    with TemporaryDirectory() as folder:  # a cache, where torchvision looks before it downloads
        torch.hub.set_dir(folder)
        try:
            _cache().mkdir()
            torch.save(state, _cache() / backbone.file_name)
            network = LearnedPerceptualImagePatchSimilarity(net_type=net).net.to(device)
        finally:
            torch.hub.set_dir(hub)

    def prepared(pictures: Tensor) -> Tensor:
        rgb = pictures.float()[:, : 3 if pictures.shape[1] >= 3 else 1].expand(-1, 3, -1, -1)
        factor = math.ceil(backbone.least_side / min(rgb.shape[-2:]))
        return functional.interpolate(rgb, scale_factor=factor, mode="bilinear")

    def measure(translated: Tensor, wanted: Tensor) -> Tensor:
        # TensorFloat-32, cuDNN's default, would round features to three digits.
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            distances: Tensor = network(prepared(translated), prepared(wanted))
        return distances.flatten()

    return measure


def _read_weights(path: Path, nets: Sequence[LpipsNet]) -> tuple[LpipsNet, dict[str, Tensor]]:
    """Reads torchvision's weights of one of the networks, recognised by names and shapes."""
    from torchvision import models

    hint = "pass torchvision's weights by --lpips-weights FILE, or --lpips none"
    state = read_state_dict(path, hint)
    for net in nets:
        with torch.device("meta"):  # shapes without 138 million numbers
            expected = models.get_model(BACKBONES[net].architecture, weights=None).state_dict()
        if {k: v.shape for k, v in expected.items()} == {k: v.shape for k, v in state.items()}:
            return net, state
    wanted = " or ".join(BACKBONES[net].architecture for net in nets)
    raise IiaeError(f"{path} does not hold {wanted}", hint)


# ---- the judge


class Judge(nn.Module):
    """Reads classes and factors off one domain's pictures, by three convolutions.

    Factors are those named `DOMAIN_…`, in fractions of their range in training (N, F); they also
    see the picture's mean and extreme colours.
    """

    def __init__(self, train: Split, domain: Domain) -> None:
        super().__init__()
        self.classes: Array = np.unique(train.side(domain).labels or [])  # in the order of scores
        self.columns: dict[str, slice] = {}  # of each factor
        width = 0
        for name, values in train.factors.items():
            numeric = np.issubdtype(values.dtype, np.number) and np.isfinite(values).all()
            if name.startswith(f"{domain}_") and numeric:
                self.columns[name] = slice(width, width + values[0].size)
                width = self.columns[name].stop
        table = self._table(train)
        self.low, self.span = table.min(axis=0), np.ptp(table, axis=0)
        self.span[self.span == 0] = 1
        channels = train.side(domain).rows.shape[-1]
        widths = (channels, 32, 64, 128)
        self.stages = nn.Sequential(
            *[
                nn.Sequential(nn.Conv2d(first, second, 3, 2, 1), nn.BatchNorm2d(second), nn.ReLU())
                for first, second in pairwise(widths)
            ],
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        self.scores = nn.Linear(widths[-1] * 16, len(self.classes))
        self.factors = nn.Sequential(
            nn.Linear(widths[-1] * 16 + 3 * channels, 64), nn.ReLU(), nn.Linear(64, width)
        )

    def _table(self, split: Split) -> Array:
        columns = [split.factors[name].reshape(split.pair_count, -1) for name in self.columns]
        return np.hstack([np.zeros((split.pair_count, 0)), *columns]).astype(np.float32)

    def truth(self, split: Split) -> Array:
        """Returns the factors of a split's pairs (M, F)."""
        fractions: Array = (self._table(split) - self.low) / self.span
        return fractions

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Returns class scores and factors of pictures (B, C, H, W)."""
        height, width = (min(side, _JUDGE_SIDE) for side in pictures.shape[-2:])
        pictures = functional.adaptive_avg_pool2d(pictures, (height, width))
        features = self.stages(pictures)
        colours = [pictures.mean((2, 3)), pictures.amax((2, 3)), pictures.amin((2, 3))]
        return self.scores(features), self.factors(torch.cat([features, *colours], 1))

    def read(self, batches: Iterable[Tensor]) -> tuple[Array, Array]:
        """Reads classes by name (N,) and factors (N, F) off pictures (B, C, H, W) in [−1, 1]."""
        with torch.inference_mode():
            read = [self(pictures.float()) for pictures in batches]
        scores, factors = (torch.cat(parts).cpu() for parts in zip(*read, strict=True))
        return self.classes[scores.argmax(1)], factors.float().numpy()


def train_judge(
    train: Split, domain: Domain, trained: TrainedModel, seed: int = 0, steps: int = JUDGE_STEPS
) -> Judge:
    """Trains a judge of a domain's labels, and of the numeric factors `DOMAIN_…` of its pairs."""
    if train.pairs is not None:
        train = train.take_pairs(np.arange(train.pair_count))
    rows, device = train.side(domain).rows, trained.device
    codes = np.unique(train.side(domain).labels or [], return_inverse=True)[1]
    order = PairOrder(len(rows), min(64, len(rows)), seed)
    with torch.random.fork_rng([]), console.progress(f"judge of {domain}", steps) as bar:
        torch.manual_seed(seed)
        judge = Judge(train, domain).to(device)
        values, classes = (
            torch.from_numpy(each).to(device) for each in (judge.truth(train), codes)
        )
        optimizer = torch.optim.Adam(judge.parameters())
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
            chosen = order.indices(step)
            scores, factors = judge(trained.inputs(rows[chosen]))
            loss = functional.cross_entropy(scores, classes[chosen])
            if judge.columns:
                loss = loss + functional.l1_loss(factors, values[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            bar.update(step + 1)
    return judge.eval()


def judged_translations(
    subject: Subject, judges: dict[Domain, Judge], samples: int
) -> dict[str, dict[str, Figures]]:
    """Returns what the judges, by target domain, read off translations of labelled pairs.

    docs/cli.md defines the figures. Guided translations take the exclusive mean of another row than
    the partner, whose colour says nothing about the input.
    """
    split, count, trained = subject.split, len(subject.split.x), subject.trained
    drawn = subject.samples(samples)
    reference = np.random.default_rng(subject.seed).permutation(count)
    figures: dict[str, dict[str, Figures]] = {}
    for name, way in DIRECTIONS.items():
        judge, rows = judges[way[1]], split.side(way[1]).rows
        wanted, own = (np.array(split.side(domain).labels) for domain in way)
        manner = subject.pairs[way[1]].take(reference).exclusive_mean
        real = judge.read(trained.inputs(rows[part]) for part in slices(count, subject.batch_size))
        guided = judge.read(subject.translated(way, manner))
        sampled = [judge.read(subject.translated(way, exclusive)) for exclusive in drawn]
        kept = [(classes == wanted).mean() for classes, _ in sampled]
        entry: dict[str, Figures] = {
            "class": {
                "real": float((real[0] == own).mean()),
                "guided": float((guided[0] == wanted).mean()),
                "sampled": float(np.mean(kept)) if kept else None,
                "n": count,
            }
        }
        truth = judge.truth(split)
        by_column = {
            "error_real": np.abs(real[1] - truth).mean(axis=0),
            "error_guided": np.abs(guided[1] - truth[reference]).mean(axis=0),
            "spread_real": real[1].std(axis=0),
        }
        if len(sampled) > 1:
            variances = np.var([factors for _, factors in sampled], axis=0, ddof=1)
            by_column["spread_sampled"] = np.sqrt(variances.mean(axis=0))
        for factor, columns in judge.columns.items():
            means = {key: float(values[columns].mean()) for key, values in by_column.items()}
            entry[factor] = {"spread_sampled": None, **means, "n": count}
        figures[name] = entry
    return figures
