"""The paper's method at 256×256 in TensorFlow's graph mode, beside this package's.

The layers, initial weights, batch norm and optimiser are TensorFlow's own, used as the released
code uses them; its further outputs, which do not enter the loss, are left out. Two checks:

    python -m benchmarks.tensorflow_reference train few-400.h5 few-200.h5 --steps 500 --seed 0
    python -m benchmarks.tensorflow_reference trace few-400.h5 trace.npz --steps 4
    python -m benchmarks.tensorflow_reference compare trace.npz [--torch-epsilon]

`train` prints Recall@1 of a test file's pairs. `trace` takes a few steps in float64 without noise
and dropout; `compare` takes them again by `iiae_cli` from the same weights, and prints how far the
losses are apart. It adds Adam's epsilon before the bias correction, as TensorFlow does, or with
`--torch-epsilon` after it, as PyTorch and `iiae train` do. `train` and `trace` need `pip install
tensorflow-cpu==2.15.1 h5py pillow` in an environment of their own, `compare` needs `iiae`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

SIDE, BATCH, LAMBDA, WEIGHT, ANNEALING = 256, 8, 5.0, 1000.0, 25_000.0
ENCODER, DECODER = (32, 64, 128, 256), (512, 256, 128, 64)
SHARED, EXCLUSIVE = 128, 8
DOMAINS = ("x", "y")


def pictures(path: str, split: str, domain: str) -> np.ndarray:
    """A split's pictures (N, 256, 256, 3) uint8, enlarged by Pillow's bicubic filter."""
    import h5py
    from PIL import Image

    with h5py.File(path) as file:
        rows = file[split][domain][()]
    sized = [Image.fromarray(row).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for row in rows]
    return np.stack([np.asarray(image) for image in sized])


class Graph:
    """Placeholders, loss terms, the training operation and the means that retrieval compares."""

    def __init__(self, tf: Any, dtype: Any, noisy: bool) -> None:
        self.tf, self.dtype, self.noisy = tf, dtype, noisy
        self.training = tf.placeholder(tf.bool)
        given = {d: tf.placeholder(dtype, (BATCH, SIDE, SIDE, 3)) for d in DOMAINS}
        exclusive = {d: self.exclusive(given[d]) for d in DOMAINS}
        features = {d: self.trunk(given[d]) for d in DOMAINS}
        shared = {d: self.gaussian(self.down(features[d], 2 * SHARED)) for d in DOMAINS}
        both = tf.concat([features[d] for d in DOMAINS], axis=-1)
        joint = self.gaussian(self.down(both, 2 * SHARED))
        latent = self.drawn(*joint)
        terms = {"kl_shared_prior": self.kl(joint)}
        for d in DOMAINS:
            error = tf.abs(self.decoded(latent, self.drawn(*exclusive[d])) - given[d])
            terms[f"reconstruction_{d}"] = WEIGHT * tf.reduce_mean(error)
            terms[f"kl_exclusive_{d}"] = self.kl(exclusive[d])
            terms[f"kl_shared_{d}"] = self.kl(joint, shared[d])
        step = tf.train.get_or_create_global_step()
        annealed = 1.0 - tf.exp(-tf.cast(step, dtype) / ANNEALING)
        loss = annealed / LAMBDA * terms["kl_shared_prior"]
        for d in DOMAINS:
            elbo = terms[f"reconstruction_{d}"] + annealed * terms[f"kl_exclusive_{d}"]
            loss += (1 + LAMBDA) / LAMBDA * elbo + terms[f"kl_shared_{d}"]
        with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
            self.train = tf.train.AdamOptimizer(2e-4, beta1=0.5).minimize(loss, global_step=step)
        self.given, self.terms = given, terms | {"loss": loss}
        self.means = [shared[d][0] for d in DOMAINS] + [exclusive[d][0] for d in DOMAINS]

    def fed(self, rows: dict[str, np.ndarray], index: Any, training: bool) -> dict[Any, Any]:
        """A batch of pictures as the placeholders take it."""
        dtype = self.dtype.as_numpy_dtype
        feeds = {self.given[d]: rows[d][index].astype(dtype) / 127.5 - 1.0 for d in DOMAINS}
        return feeds | {self.training: training}

    def normal(self, mean: float) -> Any:
        """The initial weights' distribution."""
        return self.tf.random_normal_initializer(mean, 0.02)

    def down(self, x: Any, filters: int) -> Any:
        """Halves both sides."""
        start = self.normal(0.0)
        return self.tf.layers.conv2d(x, filters, 4, 2, "same", kernel_initializer=start)

    def up(self, x: Any, filters: int) -> Any:
        """Doubles both sides."""
        start = self.normal(0.0)
        return self.tf.layers.conv2d_transpose(x, filters, 4, 2, "same", kernel_initializer=start)

    def norm(self, x: Any) -> Any:
        """Batch norm."""
        settings = {"momentum": 0.9, "epsilon": 1e-5, "gamma_initializer": self.normal(1.0)}
        return self.tf.layers.batch_normalization(x, training=self.training, **settings)

    def trunk(self, x: Any) -> Any:
        """(B, 256, 256, 3) → (B, 16, 16, 256)."""
        for filters in ENCODER:
            x = self.tf.nn.leaky_relu(self.norm(self.down(x, filters)), 0.2)
        return x

    def exclusive(self, x: Any) -> tuple[Any, Any]:
        """q(z^x|x)."""
        flat = self.tf.layers.flatten(self.trunk(x))
        return self.gaussian(self.tf.layers.dense(flat, 2 * EXCLUSIVE))

    def gaussian(self, heads: Any) -> tuple[Any, Any]:
        """Mean and log-variance."""
        mean, logvar = self.tf.split(heads, 2, axis=-1)
        return mean, self.tf.minimum(logvar, self.tf.constant(9.21035, self.dtype))

    def drawn(self, mean: Any, logvar: Any) -> Any:
        """A sample, or the mean without noise."""
        if not self.noisy:
            return mean
        noise = self.tf.random_normal(mean.shape, dtype=self.dtype)
        return mean + self.tf.exp(0.5 * logvar) * noise

    def decoded(self, shared: Any, exclusive: Any) -> Any:
        """(B, 8, 8, S) and (B, E) → (B, 256, 256, 3)."""
        tiled = self.tf.tile(exclusive[:, None, None, :], (1, *shared.shape[1:3], 1))
        x = self.tf.concat([shared, tiled], axis=-1)
        for stage, filters in enumerate(DECODER):
            x = self.norm(self.up(x, filters))
            if self.noisy and stage < 2:
                x = self.tf.nn.dropout(x, rate=0.5)
            x = self.tf.nn.relu(x)
        return self.tf.tanh(self.up(x, 3))

    def kl(self, q: tuple[Any, Any], p: tuple[Any, Any] | None = None) -> Any:
        """KL(q‖p), p standard normal if missing: summed over dimensions, averaged over rows."""
        ratio, difference = self.tf.exp(q[1]) + q[0] ** 2, -q[1]
        if p is not None:
            ratio = (self.tf.exp(q[1]) + (q[0] - p[0]) ** 2) / self.tf.exp(p[1])
            difference = p[1] - q[1]
        each = self.tf.reshape(0.5 * (ratio - 1.0 + difference), (BATCH, -1))
        return self.tf.reduce_mean(self.tf.reduce_sum(each, axis=1))


def session(options: argparse.Namespace, dtype: str, noisy: bool) -> tuple[Any, Graph, Any]:
    """TensorFlow's module, the graph and a session with initial weights."""
    import tensorflow.compat.v1 as tf

    tf.disable_v2_behavior()
    tf.set_random_seed(options.seed)
    made = Graph(tf, tf.as_dtype(dtype), noisy)
    threads = {"intra_op_parallelism_threads": options.threads, "inter_op_parallelism_threads": 1}
    running = tf.Session(config=tf.ConfigProto(**threads))
    running.run(tf.global_variables_initializer())
    return tf, made, running


def train(options: argparse.Namespace) -> None:
    """Trains on one file's train pairs and prints Recall@1 among another's test pairs."""
    pairs = {d: pictures(options.data, "train", d) for d in DOMAINS}
    test = {d: pictures(options.test, "test", d) for d in DOMAINS}
    _, made, running = session(options, "float32", noisy=True)

    def order() -> Iterator[int]:
        rng = np.random.default_rng(options.seed)
        while True:
            yield from rng.permutation(len(pairs["x"]))

    numbers, start = order(), time.time()
    count = len(test["x"]) // BATCH * BATCH
    for step in range(1, options.steps + 1):
        index = [next(numbers) for _ in range(BATCH)]
        loss = running.run([made.train, made.terms["loss"]], made.fed(pairs, index, True))[1]
        if step % 100 and step != options.steps:
            continue
        starts = range(0, count, BATCH)
        parts = [
            running.run(made.means, made.fed(test, np.s_[i : i + BATCH], False)) for i in starts
        ]
        x, y, e, f = (
            np.concatenate(part).reshape(count, -1).astype(float)
            for part in zip(*parts, strict=True)
        )
        shared, exclusive = (
            f"{recall(a, b):.3f} / {recall(b, a):.3f}" for a, b in ((x, y), (e, f))
        )
        took = f"step {step}, {time.time() - start:.0f} s, loss {loss:.1f}"
        print(f"{took}, Recall@1 {shared}, exclusive {exclusive}", flush=True)


def recall(queries: np.ndarray, gallery: np.ndarray) -> float:
    """Recall@1 by Euclidean distance."""
    distances = (gallery**2).sum(axis=1) - 2 * queries @ gallery.T
    return float((distances.argmin(axis=1) == np.arange(len(queries))).mean())


def trace(options: argparse.Namespace) -> None:
    """Writes initial weights, batches and the losses of noiseless steps in float64."""
    tf, made, running = session(options, "float64", noisy=False)
    rows = {d: pictures(options.data, "train", d)[: BATCH * options.steps] for d in DOMAINS}
    variables = [v for v in tf.trainable_variables() if "bias" not in v.name]
    kept = {f"{i:02d}": values for i, values in enumerate(running.run(variables))}
    losses = []
    for step in range(options.steps):
        index = np.s_[step * BATCH : (step + 1) * BATCH]
        _, terms = running.run([made.train, made.terms], made.fed(rows, index, True))
        losses.append([terms[name] for name in sorted(terms)])
        print(f"step {step}: loss {terms['loss']:.6f}", flush=True)
    np.savez(options.out, losses=losses, names=sorted(made.terms), **rows, **kept)


def compare(options: argparse.Namespace) -> None:
    """Takes a trace's steps by `iiae_cli` from its weights; prints the largest differences."""
    import torch
    from torch import nn

    from iiae_cli.model.iiae import IIAE, Latents
    from iiae_cli.model.networks import ImageNetworks
    from iiae_cli.model.objective import bound

    kept = np.load(options.trace)
    networks = ImageNetworks((SIDE, SIDE), ENCODER, DECODER, SHARED, dropout=0.0)
    model = IIAE(networks, {"x": 3, "y": 3}, exclusive_dim=EXCLUSIVE).double().train()
    # In the order of the graph: every layer's weights, and its norm's scale and shift.
    parts = [model.exclusive["x"], model.exclusive["y"], model.features["x"], model.features["y"]]
    parts += [model.shared["x"], model.shared["y"], model.joint_shared]
    parts += [model.decoder["x"], model.decoder["y"]]
    layers = [
        layer
        for part in parts
        for layer in part.modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d)
    ]
    numbers = iter(sorted(name for name in kept.files if name.isdigit()))
    with torch.no_grad():
        for layer in layers:
            values = torch.from_numpy(kept[next(numbers)])
            if isinstance(layer, nn.BatchNorm2d):
                layer.bias.copy_(torch.from_numpy(kept[next(numbers)]))
            elif isinstance(layer, nn.Linear):  # TensorFlow flattens (H, W, C), torch (C, H, W)
                cells = values.reshape(16, 16, ENCODER[-1], -1).permute(3, 2, 0, 1)
                values = cells.flatten(1)
            else:
                values = values.permute(3, 2, 0, 1)
                if values.shape[0] == SHARED + EXCLUSIVE:  # here z^x comes first
                    values = torch.cat([values[SHARED:], values[:SHARED]])
            layer.weight.copy_(values)
    objective = bound("elbo+ii-mi", LAMBDA)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, 2e-4, betas=(0.5, 0.999))
    for step, wanted in enumerate(kept["losses"]):
        index = np.s_[step * BATCH : (step + 1) * BATCH]
        x, y = (torch.from_numpy(kept[d][index] / 127.5 - 1.0).permute(0, 3, 1, 2) for d in DOMAINS)
        posteriors = model.infer(x, y)
        assert posteriors.joint_shared is not None
        means = {domain: q.mean for domain, q in posteriors.exclusive.items()}
        generated = model.generate(Latents(means, posteriors.joint_shared.mean))
        terms = objective(posteriors, generated, step)
        correction = 1.0 if options.torch_epsilon else np.sqrt(1 - 0.999 ** (step + 1))
        optimizer.param_groups[0]["eps"] = 1e-8 / correction
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        apart = {
            str(name): abs(float(terms[str(name)].detach()) / value - 1)
            for name, value in zip(kept["names"], wanted, strict=True)
        }
        name = max(apart, key=apart.__getitem__)
        print(f"step {step}: loss {terms['loss']:.6f}, at most {apart[name]:.1e} apart ({name})")


def main() -> None:
    """Runs one of the three."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for run, names in ((train, ("data", "test")), (trace, ("data", "out")), (compare, ("trace",))):
        command = commands.add_parser(run.__name__, help=run.__doc__)
        command.set_defaults(run=run)
        for name in names:
            command.add_argument(name)
        if run is compare:
            command.add_argument("--torch-epsilon", action="store_true")
            continue
        command.add_argument("--steps", type=int, default=500 if run is train else 4)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
