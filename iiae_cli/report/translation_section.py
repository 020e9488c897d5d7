"""The report's grids: the paper's Table 1, and analogies within each domain; only where rows are pictures."""

from __future__ import annotations

from PIL import Image

from iiae_cli.data.datafile import Split
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.model import DOMAINS
from iiae_cli.report.analogies import analogy_grid
from iiae_cli.report.examples import spread
from iiae_cli.report.figures import sample_grid
from iiae_cli.report.page import Grid, png_uri

GRID_PAIRS = 8
ANALOGY_SIDE = 5


def translation_grids(
    trained: TrainedModel, split: Split, *, aligned: bool, samples: int, seed: int
) -> list[Grid]:
    """Grids of rows spread evenly over the split; none for features, nor from a dual encoder.

    Args:
        trained: the model.
        split: rows to translate.
        aligned: whether row i of x belongs to row i of y; without, there is no partner to guide a translation.
        samples: sampled outputs per input.
        seed: of the samples.
    """
    if trained.size is None or not trained.network.generative:
        return []
    grids = []
    if aligned:
        pairs = split.take_pairs(spread(split.pair_count, GRID_PAIRS))
        image = sample_grid(trained, pairs, samples=samples, seed=seed)
        sampled, guided = "", " guided by its partner" if trained.network.exclusive_dim else ""
        if trained.network.exclusive_dim and samples:
            sampled = (
                f"{samples} translation{'s' * (samples > 1)} with sampled exclusive latents, then "
            )
        note = f"Each row is a pair. From the left: x, {sampled}the translation to y{guided}; then y to x."
        grids.append(
            _grid(
                "Translation, sampled and guided",
                note,
                f"Grid of {len(pairs.x)} rows. {note}",
                image,
            )
        )
    if trained.network.exclusive_dim:
        for domain in DOMAINS:
            rows = split.side(domain).rows
            chosen = spread(len(rows), 2 * ANALOGY_SIDE)
            queries, references = rows[chosen[::2]], rows[chosen[1::2]]
            if not len(references):
                continue
            image = analogy_grid(trained, domain, queries, references)
            note = (
                f"Domain {domain}: what is shared comes from the picture at the left, what is exclusive to {domain} "
                "from the reference above."
            )
            text = f"Grid of {len(queries)} pictures by {len(references)} references. {note}"
            grids.append(_grid(f"Analogies within {domain}", note, text, image))
    return grids


def _grid(title: str, note: str, text: str, image: Image.Image) -> Grid:
    return Grid(title, note, text, png_uri(image), image.width, image.height)
