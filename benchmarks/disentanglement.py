"""IIAE, its -plus preset and peers on one data file, read by the same probes.

    python -m benchmarks.disentanglement data/mnist-quadrants.h5 --out results

`iiae` and `plus` are the presets, `infonce` is the contrastive term alone, `dmvae` and `mmvae+` are
the `multivae` package's (left out where it is not installed) by its defaults, with the networks of
`plus`, Laplace likelihoods and one sample per step. All see as many batches, and probes read the
test rows, the better of two; `leak` sums what shared latents say of the factor and exclusive ones
of the class, above chance. Lines of OUT/rows.jsonl are not measured again; OUT/table.md has means.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iiae_cli.builders import build_model, build_schedule, picture_size
from iiae_cli.config import Config
from iiae_cli.config.presets import preset_layers, resolve, set_layer
from iiae_cli.data.batches import to_inputs
from iiae_cli.data.datafile import DataFile
from iiae_cli.evaluation.probes import draw_folds, probe, read_factor
from iiae_cli.inference.api import Model
from iiae_cli.model import DOMAINS, Domain
from iiae_cli.model.iiae import IIAE

OWN = {
    "iiae": ("", []),
    "plus": ("-plus", []),
    "infonce": ("-plus", ["objective.kind=infonce", "objective.independence=0"]),
}
PEERS = {"dmvae": "DMVAE", "mmvae+": "MMVAEPlus"}
Means = dict[tuple[str, Domain], np.ndarray]
Measured = tuple[float, nn.Module, Means]


def own(name: str, options: argparse.Namespace, seed: int) -> Measured:
    """A run of `iiae train`: its CPU seconds, its model, and means of the test rows."""
    (suffix, sets), run = OWN[name], options.out / f"{name}-{seed}"
    words = ["--preset", options.preset + suffix, "--data", options.data, "--run", run]
    words += ["--seed", seed, "--steps", options.steps, "--overwrite"]
    words += [word for key in [*sets, *options.set] for word in ("--set", key)]
    command = [sys.executable, "-m", "iiae_cli", "train", *map(str, words)]
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    end, trained, means = resource.getrusage(resource.RUSAGE_CHILDREN), Model.load(run).trained, {}
    for domain in DOMAINS:
        encoded = trained.encode(DataFile(options.data).split("test").side(domain).rows, domain)
        means["shared", domain] = encoded.shared_mean
        if encoded.exclusive_mean is not None:
            means["exclusive", domain] = encoded.exclusive_mean
    return end.ru_utime - start.ru_utime, trained.network, means


def peer(name: str, options: argparse.Namespace, seed: int) -> Measured:
    """The same of a `multivae` model, trained by a plain loop at the preset's rates."""
    layers = [*preset_layers(f"{options.preset}-plus"), set_layer(options.set)]
    config, file = resolve(layers).config, DataFile(options.data)
    torch.manual_seed(seed)
    model = multivae_model(name, build_model(config, file.info), config)
    split, size = file.split("train"), picture_size(config, file.info)
    optimizer = torch.optim.Adam(model.parameters(), betas=(config.optimizer.beta1, 0.999))
    rate, batch = build_schedule(config, options.steps), config.training.batch_size or 64
    rng, start = np.random.default_rng(seed), time.process_time()
    for step in range(options.steps):
        rows = np.sort(rng.choice(len(split.x), min(batch, len(split.x)), replace=False))
        data = {domain: to_inputs(split.side(domain).rows[rows], size) for domain in DOMAINS}
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.zero_grad()
        model(SimpleNamespace(data=data)).loss.backward()
        optimizer.step()
    took, means = time.process_time() - start, {}
    model.eval()
    for domain in DOMAINS:
        with torch.no_grad():
            read = model.encoders[domain](to_inputs(file.split("test").side(domain).rows, size))
        means["shared", domain] = read.embedding.numpy()
        means["exclusive", domain] = read.style_embedding.numpy()
    return took, model, means


def multivae_model(name: str, networks: IIAE, config: Config) -> nn.Module:
    """A model of `multivae` around an IIAE's own encoders and decoders."""
    from multivae import models
    from multivae.models.nn import base_architectures as bases
    from pythae.models.base.base_utils import ModelOutput

    width, own_width = config.model.shared, config.model.exclusive

    class Encoder(bases.BaseMultilatentEncoder):
        def __init__(self, domain: Domain) -> None:
            super().__init__()
            self.latent_dim, self.style_dim = width, own_width
            self.shared = nn.Sequential(networks.features[domain], networks.shared[domain])
            self.exclusive = networks.exclusive[domain]

        def forward(self, pictures: Tensor) -> Any:
            names = ("embedding", "log_covariance", "style_embedding", "style_log_covariance")
            heads = self.shared(pictures), self.exclusive(pictures)
            values = (part for head in heads for part in head.chunk(2, dim=1))
            return ModelOutput(**dict(zip(names, values, strict=True)))

    class Decoder(bases.BaseDecoder):
        def __init__(self, domain: Domain) -> None:
            super().__init__()
            self.latent_dim, self.network = width + own_width, networks.decoder[domain]

        def forward(self, latents: Tensor) -> Any:
            shared, own_part = latents.split([width, own_width], dim=-1)
            return ModelOutput(reconstruction=self.network(shared, own_part))

    kind = PEERS[name]
    more = {"DMVAE": {"modalities_specific_dim": dict.fromkeys(DOMAINS, own_width)}}
    more["MMVAEPlus"] = {"modalities_specific_dim": own_width, "K": 1, "loss": "iwae_looser"}
    settings = getattr(models, f"{kind}Config")(
        n_modalities=2,
        latent_dim=width,
        decoders_dist=dict.fromkeys(DOMAINS, "laplace"),
        decoder_dist_params={domain: {"scale": 0.75} for domain in DOMAINS},
        **more[kind],
    )
    coders = ({d: make(d) for d in DOMAINS} for make in (Encoder, Decoder))
    model: nn.Module = getattr(models, kind)(settings, *coders)
    return model


def read(means: Means, options: argparse.Namespace) -> dict[str, float]:
    """The better probe's score of class and factor from every latent, and the leak."""
    split, figures, leak = DataFile(options.data).split("test"), {}, 0.0
    folds = draw_folds(np.arange(len(split.x)))
    for (latent, domain), values in means.items():
        known = {"class": split.factors["class"]}
        known[options.factor] = split.factors[f"{domain}_{options.factor}"]
        factors = [read_factor(name, column, column[:0]) for name, column in known.items()]
        for name, score in probe(values, factors, folds).items():
            if score is not None:
                figures[f"{latent}_{domain}.{name}"] = best = max(score.linear, score.nonlinear)
                if (latent == "shared") == (name == options.factor):
                    leak += max(0.0, best - score.chance) / 2
    return {**figures, "leak": leak}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean ± half the range of each competitor's seeds."""
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in ("name", "seed")))
    lines = [f"| model | seeds | {' | '.join(keys)} |", "|---" * (len(keys) + 2) + "|"]
    for name in dict.fromkeys(row["name"] for row in rows):
        mine, cells = [row for row in rows if row["name"] == name], []
        for key in keys:
            values = [row[key] for row in mine if key in row] or [np.nan]
            cells.append(f"{np.mean(values):.4g} ± {np.ptp(values) / 2:.3f}")
        lines.append(f"| {name} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> None:
    """Measure every competitor and seed that OUT does not hold yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="mnist-quadrants", help="and PRESET-plus")
    parser.add_argument("--factor", default="quadrant", help="of the exclusive latents")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=[*OWN, *PEERS], default=[*OWN, *PEERS])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(words)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "rows.jsonl"
    rows = [json.loads(line) for line in path.open()] if path.exists() else []
    for seed in options.seeds:
        for name in options.only:
            if any((row["name"], row["seed"]) == (name, seed) for row in rows):
                continue
            try:
                took, model, means = (own if name in OWN else peer)(name, options, seed)
            except ModuleNotFoundError as error:
                print(f"{name} is left out: {error}; pip install multivae", file=sys.stderr)
                continue
            size = sum(parameter.numel() for parameter in model.parameters())
            row = {"name": name, "seed": seed, "cpu_seconds": round(took, 1), "parameters": size}
            rows.append({**row, **read(means, options)})
            with path.open("a") as lines:
                lines.write(json.dumps(rows[-1]) + "\n")
    (options.out / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
