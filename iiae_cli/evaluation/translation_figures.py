"""Translation against the true partner (paper, Table 4): guided by it, or sampled."""

from __future__ import annotations

from collections.abc import Mapping

from iiae_cli.data.datafile import Split
from iiae_cli.evaluation.protocols import DIRECTIONS, EncodedPairs, direction_name
from iiae_cli.evaluation.quality import Measure, TranslationQuality, l1
from iiae_cli.inference.trained import TrainedModel, inference, prior_samples

ONLY_L1: Mapping[str, Measure] = {"l1": l1}


def translation_figures(
    trained: TrainedModel,
    pairs: EncodedPairs,
    split: Split,
    *,
    measures: Mapping[str, Measure] = ONLY_L1,
    samples: int = 0,
    seed: int = 0,
    batch_size: int = 256,
) -> dict[str, dict[str, float | int | None]]:
    """How close each row's translation comes to its partner, per direction.

    Guided: with the partner's exclusive mean. Sampled: with N draws from the prior, `_mean` over all and `_best` of
    each input's N; a model without exclusive latents has one translation and nothing to sample.

    Args:
        trained: the model.
        pairs: latents of `split`.
        split: of aligned rows.
        measures: by name; pictures are compared in [−1, 1], features as they are.
        samples: N; 0 for guided translation only.
        seed: of the samples.
        batch_size: rows at once.
    """
    figures: dict[str, dict[str, float | int | None]] = {}
    model = trained.network
    samples = samples if model.exclusive_dim else 0
    with inference(model):
        for source, target in DIRECTIONS:
            guided = TranslationQuality(measures)
            sampled = TranslationQuality(measures, samples) if samples else None
            drawn = (
                prior_samples(samples, len(split.x), model.exclusive_dim, seed) if samples else None
            )
            for start in range(0, len(split.x), batch_size):
                part = slice(start, start + batch_size)
                wanted = trained.inputs(split.side(target).rows[part])
                shared = wanted.new_tensor(pairs.of(source).mean("shared")[part])
                exclusive = None
                if model.exclusive_dim:
                    exclusive = wanted.new_tensor(pairs.of(target).mean("exclusive")[part])
                guided.add(model.decode(target, shared, exclusive), wanted)
                if sampled is not None and drawn is not None:
                    latents = drawn[part].to(shared.device).flatten(0, 1)
                    outputs = model.decode(
                        target, shared.repeat_interleave(samples, dim=0), latents
                    )
                    sampled.add(outputs.reshape(len(wanted), samples, *wanted.shape[1:]), wanted)
            found = guided.figures() | (sampled.figures() if sampled is not None else {})
            figures[direction_name(source, target)] = found
    return figures
