"""Where values come from, who wins, and what is refused."""

import pytest
import yaml
from helpers import refusal

from iiae_cli.common.environment import data_file, preset_names
from iiae_cli.config import Config
from iiae_cli.config.presets import (
    Layer,
    environment_layer,
    flatten,
    key_help,
    load_yaml,
    preset_layers,
    resolve,
    set_layer,
)


def with_set(*assignments):
    return resolve([*preset_layers("digits-cdcb"), set_layer(assignments)])


# ---- precedence and sources


def test_every_key_has_a_value_and_one_line_of_help():
    assert [key for key, _, _ in with_set().rows()] == list(key_help())
    assert all(text and "\n" not in text for text in key_help().values())


def test_of_steps_and_epochs_the_later_choice_counts():
    steps, epochs = Layer("a", {"training.steps": 9}), Layer("b", {"training.epochs": 3})
    for layers, expected in (([steps, epochs], (None, 3)), ([epochs, steps], (9, None))):
        training = resolve(layers).config.training
        assert (training.steps, training.epochs) == expected
    assert resolve([steps, Layer("b", {"training.epochs": None})]).config.training.steps == 9
    both, neither = ["training.steps=5", "training.epochs=5"], ["training.steps=null"]
    for assignments, state in ((both, "set"), (neither, "unset")):
        said = f"training.steps and training.epochs are both {state}"
        assert said in refusal(with_set, *assignments).message


# ---- keys and values


def test_all_errors_are_reported_at_once_with_source_and_near_match():
    layers = [
        *preset_layers("digits-cdcb"),
        Layer("file", {"optimzer.lr": 1, "objective.lambda": -1, "model.widths": [1]}),
        environment_layer({"IIAE_SEED": "many"}),
        set_layer(["data.sett=x", "adam.beta1=0", "training=3", "zzzzqqq=3", "optimizer.beta1=2"]),
    ]
    message = refusal(resolve, layers).message
    for part in (
        "unknown key 'optimzer.lr' in file, did you mean 'optimizer.lr'?",
        "unknown key 'data.sett' in --set, did you mean 'data.set'?",
        "unknown key 'adam.beta1' in --set, did you mean 'optimizer.beta1'?",
        "unknown key 'training' in --set, did you mean 'training.",
        "unknown key 'zzzzqqq' in --set; ",
        "objective.lambda in file: must be greater than 0, not -1",
        "training.seed in environment: must be a whole number, not 'many'",
        "optimizer.beta1 in --set: must be less than 1",
        "widths has 1 entries and decoder_widths 2",
    ):
        assert part in message


def test_settings_that_do_not_go_together_are_named():
    for assignment in ("augment.flip=0.5", "model.attention=2", "model.linear_path=canonical"):
        key = assignment.partition("=")[0].replace("augment.flip", "augment")
        layers = [*preset_layers("features"), set_layer([assignment])]
        said = f"{key} does not go with model.kind=features, model.linear_path="
        assert refusal(resolve, layers).message.startswith(said)


def test_values_of_set_are_typed_as_yaml():
    values = ("optimizer.lr=1e-3", "model.widths=[4, 8]", "data.image_size=null", "data.set=a=b")
    config = with_set(*values).config
    assert (config.optimizer.lr, config.model.widths) == (0.001, [4, 8])
    assert (config.data.image_size, config.data.set) == (None, "a=b")
    assert "has no '='" in refusal(set_layer, ["training.seed"]).message


def test_the_environment_is_read_by_long_and_short_names(monkeypatch, capsys):
    names = {"IIAE_SEED": "3", "IIAE_MODEL__WIDTHS": "[8, 16]", "IIAE_RUN": "runs/a"}
    names |= {"IIAE_BACKBONE_WEIGHTS": "w.pth"}  # of other commands, too
    layer = environment_layer({**names, "IIAE_SEEED": "3", "SEED": "9"})
    assert layer.values == {"training.seed": 3, "model.widths": [8, 16]}
    warning = "warning: IIAE_SEEED is set, but has no meaning, did you mean 'IIAE_SEED'?\n"
    assert capsys.readouterr().err == warning
    monkeypatch.setenv("IIAE_EPOCHS", "77")
    assert environment_layer().values["training.epochs"] == 77


# ---- presets


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_resolves_names_its_set_and_survives_yaml(name):
    config = resolve(preset_layers(name)).config
    assert config.description and data_file(None, config.data.set).suffix == ".h5"
    assert Config.model_validate(yaml.safe_load(config.to_yaml())) == config
    assert resolve([Layer("file", flatten(load_yaml(config.to_yaml(), "")))]).config == config


def test_the_papers_values_stand_in_its_presets():
    """SPEC's table of hyper-parameters: λ, w, τ, and the epoch from which weights may be kept."""
    table = {
        "mnist-cdcb": (5, 1000, 25000, 6),
        "cars": (50, 1000, 100, 0),
        "facades": (1000, 1000, 25000, 299),
        "maps": (50, 20000, 25000, 399),
        "sketchy": (2, 10, 2000, 0),
    }
    for name, values in table.items():
        keys = {key: value for key, value, _ in resolve(preset_layers(name)).rows()}
        named = ("lambda", "reconstruction_weight", "annealing_steps")
        weights = [keys[f"objective.{key}"] for key in named]
        assert (*weights, keys["selection.first_epoch"]) == values
        assert keys["objective.kind"] == "elbo+ii-mi"
        assert keys["objective.reconstruction"] == ("l2" if name == "sketchy" else "l1")
        adam = [keys[f"optimizer.{key}"] for key in ("lr", "beta1", "beta2", "schedule")]
        assert adam == [2e-4, 0.5, 0.999, "constant"] and keys["optimizer.warmup_steps"] == 0
        size = (64, 64) if name == "sketchy" else (8, 128)
        assert (keys["model.exclusive"], keys["model.shared"]) == size
    mnist = resolve(preset_layers("mnist-cdcb")).config
    assert mnist.model.widths == [32, 64, 128, 256]
    assert mnist.model.decoder_widths == [512, 256, 128, 64]
    assert (mnist.data.image_size, mnist.training.batch_size, mnist.model.dropout) == (256, 8, 0.5)
    assert (mnist.selection.rule, mnist.selection.validate_on) == ("paper", "train")


def test_a_preset_extends_others_by_name_and_by_file(tmp_path):
    parent, child = tmp_path / "a.yaml", tmp_path / "top" / "b.yml"
    parent.write_text("extends: digits-edge\ntraining: {batch_size: 16, log_every: 3}\n")
    child.parent.mkdir()
    child.write_text("extends: ../a.yaml\ntraining: {batch_size: 17}\n")
    resolved = resolve(preset_layers(str(child)))
    training, sources = resolved.config.training, resolved.sources
    assert (training.batch_size, sources["training.batch_size"]) == (17, str(child))
    assert training.log_every == 3 and sources["training.log_every"].endswith("a.yaml")
    assert sources["data.set"] == "preset digits-edge"
    assert sources["objective.lambda"] == "preset digits-cdcb"


def test_presets_that_extend_themselves_or_are_missing_are_refused(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {other}.yaml\n")
    message = refusal(preset_layers, str(tmp_path / "a.yaml")).message
    assert "extends itself through a.yaml" in message
    error = refusal(preset_layers, "digit-cdcb")
    assert error.message == "unknown preset 'digit-cdcb', did you mean 'digits-cdcb'?"
    error = refusal(preset_layers, str(tmp_path / "none.yaml"))
    assert "none.yaml does not exist" in error.message and "iiae presets" in error.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"training: [1\nmodel: 2\n", "is not valid YAML"),
        (b"\xff\xfe\x00broken", "is damaged"),
        (b"- a\n- b\n", "does not hold a mapping"),
    ],
)
def test_a_bad_preset_file_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    message = refusal(preset_layers, str(path)).message
    assert said in message and str(path) in message


@pytest.mark.parametrize(
    "text", ["a: 1\na: 2", "[" * 5000, "!!python/name:os.system x", "a: 1\n---\nb: 2", "a: \0"]
)
def test_what_is_no_plain_value_is_refused(text):
    assert refusal(load_yaml, text, "x.yaml").message.startswith("x.yaml is not valid YAML: ")
