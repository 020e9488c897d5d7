"""Which weights are kept, when training ends early, and what a person is warned of."""

import pytest
import torch

from iiae_cli.builders import build_model
from iiae_cli.config import SelectionSection
from iiae_cli.config.presets import preset_layers, resolve, set_layer
from iiae_cli.data.datafile import DataFile
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.runs import LoadedModel
from iiae_cli.training.validation import Progress, Validation, validate


def validation(x, y, hits=(0, 0), kl=(9, 9)):
    return Validation((x, y), dict(zip("xy", kl, strict=True)), {"pairs": 100}, hits, (0.1, 0.1))


def kept(memory, selection, scores):
    return [memory.accepts(validation(score, score), 1.0, selection) for score in scores]


def test_selection_by_recall_keeps_the_best_and_the_later_of_equals_and_counts_the_stale():
    memory = Progress()
    for score, keeps, stale in ((5, True, 0), (8, True, 0), (7, False, 1), (8, True, 2)):
        assert kept(memory, SelectionSection(rule="recall"), [score / 10]) == [keeps]
        assert memory.stale == stale


def test_the_weights_before_the_first_step_stay_unless_training_gains_enough():
    memory, selection = Progress(), SelectionSection(rule="recall", least_gain=0.1)
    assert memory.accepts(validation(0.40, 0.40), 0.0, selection)
    expected = [False, False, True, False, True]
    assert kept(memory, selection, [0.43, 0.4399, 0.45, 0.44, 0.46]) == expected


def test_selection_by_the_papers_rule_refuses_exclusive_hits_and_early_epochs():
    memory, paper = Progress(), SelectionSection(rule="paper", first_epoch=6)
    assert not memory.accepts(validation(1.0, 1.0), 5.9, paper)
    assert not memory.accepts(validation(1.0, 1.0, hits=(0, 2)), 6.0, paper)
    assert memory.accepts(validation(0.5, 0.5, hits=(1, 1)), 6.0, paper)
    assert not memory.accepts(validation(0.5, 0.4), 7.0, paper)


def test_selection_last_keeps_everything():
    assert Progress().accepts(None, 0.1, SelectionSection(rule="last", first_epoch=99))


def test_warnings_name_a_dying_latent_and_recall_below_the_baseline():
    assert validation(0.9, 0.9).warnings((0.5, 0.5)) == []
    (dying,) = validation(0.9, 0.9, kl=(9.0, 2.9)).warnings((0.5, 0.5))
    assert "exclusive latent of y" in dying and "2.9" in dying and "annealing_steps" in dying
    (below,) = validation(0.4, 0.9).warnings((0.5, 0.5))
    assert "x→y" in below and "baseline" in below
    assert validation(0.99, 0.99).warnings((1.0, 1.0)) == []  # one miss in a hundred is noise


def test_by_class_any_map_below_the_baseline_is_warned_of():
    by_class = Validation((0.40, 0.39), {}, {"classes": 4, "rows": (10, 10)})
    (below,) = by_class.warnings((0.3, 0.395))
    assert "y→x" in below and "mAP@all 0.390" in below and "--preset features" in below
    assert by_class.record()["shared_map"] == (0.40, 0.39)


@pytest.fixture(scope="module")
def data(trained):
    return trained.data


def test_the_metric_is_the_one_that_wins_on_validation(data):
    file = DataFile(data)
    config = resolve([*preset_layers("pairs"), set_layer(["evaluation.metric=auto"])]).config
    torch.manual_seed(0)
    model = build_model(config, file.info)
    split, trained = file.split("test"), TrainedModel(model, (32, 32))
    euclidean, cosine = (validate(trained, split, metric) for metric in ("euclidean", "cosine"))
    best = max((euclidean, cosine), key=lambda either: sum(either.shared))
    assert validate(trained, split, "auto") == best
    for metric, kept in (("euclidean", None), ("euclidean", euclidean), ("cosine", cosine)):
        details = {"validation": None if kept is None else kept.record()}
        assert LoadedModel(model, config, file.info, (32, 32), "", details).metric == metric
