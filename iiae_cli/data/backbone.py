"""Backbones, which turn pictures into features: reading pictures, weights, networks.

Names and published weights are those of `hubs.py`. A data file and a run refer to their backbone by
name, pooling, preprocessing, and the path and SHA-256 of its weights. A folder of two fine-tuned
networks, `x.safetensors` and `y.safetensors`, is what `--save-backbone` writes and
`--backbone-weights` takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor, nn

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading, regular_file, sha256_of
from iiae_cli.common.tensors import read_header, read_tensors, save_tensors
from iiae_cli.data import hubs
from iiae_cli.data.batches import ahead
from iiae_cli.data.datafile import NONE_SEEN, UNKNOWN, DataInfo, Seen
from iiae_cli.data.hubs import Pool, library_of
from iiae_cli.data.pictures import PictureError, Source, decode, read_all
from iiae_cli.model import DOMAINS, Domain

# Why each picture cannot be read, None where it can; and the others' input (M, 3, h, w).
Batch: TypeAlias = tuple[list[PictureError | None], Tensor]
BATCH = 16  # pictures at once through the network of a run
NETWORK_SCHEMA = "iiae.backbone/2"
FEATURES = 512  # width of a fine-tuned network's features
_HINT = "name a folder that 'iiae prepare sketchy … --save-backbone DIR' wrote"
_DECIDING = ("name", "pool", "weights", "weights_sha256", "preprocessing", "seed")


# ---- reading pictures


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the network's input."""

    invert_sketches: bool = False  # pictures of x, from black on white to white on black
    normalise: bool = True  # take out the mean and standard deviation of the network's own set
    configuration: dict[str, Any] = field(default_factory=dict)  # `Published.transform`

    def reader(self, name: str, domain: Domain) -> Callable[[Source], Tensor]:
        """Returns a function from a domain's picture to input (3, h, w) of the named backbone."""
        neutral = {} if self.normalise else {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        transform = library_of(name)[0].transform({**self.configuration, **neutral})
        size = self.configuration.get("decoded_at")
        invert = self.invert_sketches and domain == "x"

        def read(path: Source) -> Tensor:
            picture = decode(path, 3, size and (size[0], size[1]))
            return transform(255 - picture if invert else picture)

        return read


# ---- weights


@dataclass(frozen=True)
class Weights:
    """The source of a backbone's weights."""

    kind: Literal["imagenet", "published", "file", "random", "fine-tuned"]
    path: Path | None = None  # of a file, or the folder of fine-tuned networks
    sha256: str | dict[Domain, str] | None = None
    trained_on: str = "nothing"  # for people

    @classmethod
    def fine_tuned(cls, folder: Path, before: str) -> Weights:
        """Returns those of the networks in a folder, which were trained on `before` already."""
        digests = {domain: sha256_of(network_file(folder, domain)) for domain in DOMAINS}
        return cls("fine-tuned", folder, digests, f"{before}, then the training classes")

    @property
    def seen(self) -> Seen:
        """The classes of the data set that they were trained on; ImageNet's are others."""
        return NONE_SEEN if self.trained_on in ("nothing", hubs.IMAGENET) else UNKNOWN

    def to_json(self) -> dict[str, Any]:
        """Returns what the data file records."""
        return {
            "weights": self.kind,
            "weights_file": None if self.path is None else self.path.name,
            "weights_sha256": self.sha256,
            "trained_on": self.trained_on,
        }


def find_weights(name: str, given: str | None, *, download: bool = False) -> Weights:
    """Finds a backbone's weights: the file `given`, random ones for `none`.

    For None, the published ones in a cache, into which `download` fetches them.
    """
    known = hubs.published(name)
    if given == "none":
        return Weights("random")
    path = hubs.published_file(known, download) if given is None else Path(given)
    takes = "a state dict (.pth), a .safetensors file, a --save-backbone folder, or none"
    regular_file(path, f"--backbone-weights takes {takes}")
    digest = sha256_of(path)
    if digest.startswith(tuple(known.hashes)):
        return Weights("imagenet", path, digest, known.trained_on)
    if given is not None:
        return Weights("file", path, digest, "what its maker says: cannot be told")
    if known.hashes:
        message = f"{path} is damaged: its SHA-256 does not begin with {' or '.join(known.hashes)}"
        raise IiaeError(message, "delete it, then run again with --download")
    return Weights("published", path, digest, known.trained_on)


# ---- networks


def build_backbone(
    name: str, weights: Weights, seed: int = 0, pool: Pool = "pooled"
) -> tuple[nn.Module, int]:
    """Builds a network from pictures (B, 3, h, w) to features (B, D); returns it and D."""
    library, bare = library_of(name)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, width = library.network(bare, pool, weights.path)
    except (RuntimeError, KeyError, ValueError) as error:
        if weights.path is None:
            raise
        message = f"{weights.path} does not fit {name}: {str(error).splitlines()[-1].strip()[:200]}"
        raise IiaeError(message, "name the backbone that the weights belong to") from error
    return network.eval(), width


class FeatureNetwork(nn.Module):
    """A backbone and a seeded linear layer: pictures (B, 3, h, w) to signed features (B, width)."""

    def __init__(
        self, body: nn.Module, body_width: int, width: int = FEATURES, seed: int = 0
    ) -> None:
        super().__init__()
        self.body, self.width = body, width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Linear(body_width, width)

    def forward(self, pictures: Tensor) -> Tensor:
        """Returns features (B, width)."""
        return cast(Tensor, self.embed(self.body(pictures)))


@dataclass(frozen=True)
class NetworkRecord:
    """The header of a fine-tuned network's file."""

    backbone: str  # its full name
    pool: Pool
    weights: dict[str, Any]  # `Weights.to_json` of the start of fine-tuning
    preprocessing: Preprocessing  # of the pictures it was fine-tuned on
    fine_tuning: dict[str, Any]  # its settings
    seen: Seen  # classes that it was trained on


def network_file(folder: Path, domain: Domain) -> Path:
    """Returns the file of a domain's fine-tuned network."""
    return folder / f"{domain}.safetensors"


def save_network(folder: Path, network: nn.Module, domain: Domain, record: NetworkRecord) -> None:
    """Writes a domain's fine-tuned network, atomically."""
    header = {"schema": NETWORK_SCHEMA, "domain": domain, "record": json.dumps(asdict(record))}
    save_tensors(network.state_dict(), network_file(folder, domain), header)


def read_record(folder: Path, domain: Domain) -> NetworkRecord:
    """Reads the header of a domain's fine-tuned network, without its weights."""
    path = network_file(folder, domain)
    header = read_header(path, NETWORK_SCHEMA, _HINT)
    if header.get("domain") != domain:
        raise IiaeError(f"{path} is the network of domain {header.get('domain', '?')}", _HINT)
    with reading(path, _HINT):
        record = TypeAdapter(NetworkRecord).validate_json(header["record"])
    hubs.published(record.backbone)  # raises if it is unknown
    return record


def network_of(
    name: str, weights: Weights, domain: Domain, seed: int = 0, pool: Pool = "pooled"
) -> nn.Module:
    """Builds a domain's network; both domains have the same one unless they were fine-tuned."""
    if weights.kind != "fine-tuned" or weights.path is None:
        return build_backbone(name, weights, seed, pool)[0]
    path, record = network_file(weights.path, domain), read_record(weights.path, domain)
    _, state = read_tensors(path, NETWORK_SCHEMA, _HINT)
    body, body_width = build_backbone(record.backbone, Weights("random"), pool=record.pool)
    with reading(path, _HINT):
        network = FeatureNetwork(body, body_width, state["embed.weight"].shape[0])
        network.load_state_dict(state)
    return network.eval()


# ---- features, in `prepare` and ever after


def repeatable() -> AbstractContextManager[None]:
    """Makes a GPU convolve in the same way each time."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)


@dataclass(frozen=True)
class Extractor:
    """A domain's backbone: its network, and how pictures become the input."""

    name: str  # of the backbone
    preprocessing: Preprocessing
    network: nn.Module
    domain: Domain
    device: torch.device
    workers: int = 1  # decoding threads

    def inputs(self, batches: Iterable[Sequence[Source]]) -> Generator[Batch, None, None]:
        """Decodes batches of pictures, one batch ahead of the caller."""
        reader = self.preprocessing.reader(self.name, self.domain)

        def read(paths: Sequence[Source]) -> Batch:
            made = read_all(paths, reader, self.workers)
            pictures = [item for item in made if isinstance(item, Tensor)]
            stack = torch.stack(pictures) if pictures else torch.empty(0)
            errors = [item if isinstance(item, PictureError) else None for item in made]
            return errors, stack.to(self.device)

        return ahead(read, batches)

    def features(
        self, batches: Iterable[Sequence[Source]]
    ) -> Iterator[list[NDArray[np.float32] | PictureError]]:
        """Yields the features (D,) of a batch's pictures, or why there are none."""
        network = self.network.to(self.device).eval()
        with closing(self.inputs(batches)) as decoded:
            for errors, pictures in decoded:
                with torch.inference_mode(), repeatable():
                    features = network(pictures) if len(pictures) else pictures
                rows = iter(features.float().cpu().numpy())
                yield [error or next(rows) for error in errors]


def backbone_of(info: DataInfo) -> dict[str, Any] | None:
    """Returns a data file's record of its backbone; None if features were made elsewhere."""
    Seen.of_data_file(info.attributes)  # raises if it is damaged
    record: dict[str, Any] = json.loads(info.attributes.get("backbone", "{}"))
    return record if record.get("weights_path") or record.get("weights") == "random" else None


def refuse_other_backbone(path: Path, given: DataInfo, trained_on: DataInfo) -> None:
    """Raises if a file's features and the model's data come from different backbones."""
    here, there = backbone_of(given), backbone_of(trained_on)
    different = [key for key in _DECIDING if here and there and here.get(key) != there.get(key)]
    if here and there and different:
        message = f"the features of {path} are of {here['name']}, the model's of {there['name']}: "
        message += f"{', '.join(different)} differ"
        raise IiaeError(message, "use features of the backbone that the run was trained on")


def recorded_extractor(
    record: Mapping[str, Any],
    domain: Domain,
    device: torch.device | str,
    *,
    workers: int = 1,
    weights: str | None = None,
) -> Extractor:
    """Rebuilds the extractor that made a domain's features; `weights` is where its weights are now.

    Raises IiaeError if they are not the same.
    """
    name, digest = record["name"], record["weights_sha256"]
    tuned = record["weights"] == "fine-tuned"
    path = Path(weights or record["weights_path"] or "none")
    file, wanted = (network_file(path, domain), digest[domain]) if tuned else (path, digest)
    if digest is not None and not (file.is_file() and sha256_of(file) == wanted):
        message = f"the weights of the run's backbone {name} are not at {file}"
        place = "DIR" if tuned else "FILE"
        raise IiaeError(message, f"name their place: --backbone-weights {place}")
    kept = Weights(record["weights"], path if digest else None)
    network = network_of(name, kept, domain, record["seed"], record["pool"])
    preprocessing = Preprocessing(**record["preprocessing"])
    return Extractor(name, preprocessing, network, domain, torch.device(device), workers)
