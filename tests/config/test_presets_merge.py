"""Layers of configuration: who wins, what is refused, and what is said about it."""

import pytest
import yaml

from iiae_cli.common.errors import IiaeError
from iiae_cli.config.presets import (
    Layer,
    environment_layer,
    flatten,
    key_help,
    known_keys,
    preset_folder,
    preset_layers,
    preset_names,
    read_yaml,
    resolve,
    set_layer,
)
from iiae_cli.config.schema import Config

STEPS = Layer("test", {"training.steps": 10})


def with_set(*assignments):
    return resolve([*preset_layers("digits-cdcb"), set_layer(assignments)])


def shipped(name):
    """A shipped preset's own values; they are tuned now and then, so no test below spells them out."""
    return read_yaml(preset_folder() / f"{name}.yaml")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(call, *arguments, **keywords):
    with pytest.raises(IiaeError) as caught:
        call(*arguments, **keywords)
    assert caught.value.hint
    return caught.value.message


# ---- precedence and sources


def test_each_layer_wins_over_those_before_it(tmp_path):
    write(tmp_path / "mine.yaml", "training:\n  batch_size: 4\n")
    layers = [
        *preset_layers("digits-cdcb"),
        Layer("--config mine.yaml", flatten(read_yaml(tmp_path / "mine.yaml"))),
        environment_layer({"IIAE_BATCH_SIZE": "5"}),
        Layer("options", {"training.batch_size": 6}),
        set_layer(["training.batch_size=7"]),
    ]
    expected = [
        (shipped("digits-cdcb")["training"]["batch_size"], "preset digits-cdcb"),
        (4, "--config mine.yaml"),
        (5, "environment"),
        (6, "options"),
        (7, "--set"),
    ]
    for number, (value, source) in enumerate(expected, 1):
        resolved = resolve(layers[:number])
        assert resolved.config.training.batch_size == value
        assert resolved.sources["training.batch_size"] == source


def test_a_layer_changes_its_own_keys_only():
    before, after = resolve(preset_layers("digits-cdcb")), with_set("optimizer.lr=0.5")
    changed = {
        key
        for key, value, source in after.rows()
        if (key, value, source) not in [tuple(row) for row in before.rows()]
    }
    assert changed == {"optimizer.lr"}


def test_every_value_says_where_it_comes_from():
    resolved = resolve([*preset_layers("digits-edge"), set_layer(["objective.lambda=7"])])
    rows = {key: (value, source) for key, value, source in resolved.rows()}
    assert list(rows) == known_keys()
    assert rows["objective.lambda"] == (7, "--set")
    assert rows["training.steps"] == (
        shipped("digits-edge")["training"]["steps"],
        "preset digits-edge",
    )
    assert rows["training.batch_size"] == (
        shipped("digits-cdcb")["training"]["batch_size"],
        "preset digits-cdcb",
    )
    assert rows["training.log_every"] == (50, "default")


# ---- what is refused


def test_an_unknown_key_is_refused_with_its_near_match_and_its_source():
    message = refusal(with_set, "training.seeed=3")
    assert message == "unknown key 'training.seeed' in --set, did you mean 'training.seed'?"
    assert "'objective.lambda'" in refusal(with_set, "lambda=3")
    assert "'objective.lambda'" in refusal(with_set, "objective.lam=3")
    assert "'optimizer.lr'" in refusal(with_set, "lr=3")  # right name, no section
    assert "'optimizer.lr'" in refusal(with_set, "adam_and_its_settings.lr=3")


def test_a_key_like_no_other_is_refused_without_a_guess():
    assert refusal(with_set, "zzzzqqq=3") == "unknown key 'zzzzqqq' in --set"


def test_a_section_cannot_be_replaced_by_a_value():
    assert "unknown key 'training'" in refusal(with_set, "training=3")


def test_all_errors_are_reported_at_once():
    message = refusal(
        resolve,
        [
            *preset_layers("digits-cdcb"),
            Layer("file", {"optimzer.lr": 1, "objective.lambda": -1, "model.widths": [1]}),
            environment_layer({"IIAE_SEED": "many"}),
            set_layer(["data.sett=x", "optimizer.beta1=1.5"]),
        ],
    )
    for part in (
        "unknown key 'optimzer.lr' in file, did you mean 'optimizer.lr'?",
        "unknown key 'data.sett' in --set, did you mean 'data.set'?",
        "objective.lambda in file: Input should be greater than 0, not -1",
        "training.seed in environment",
        "not 'many'",
        "optimizer.beta1 in --set: Input should be less than 1",
        "widths has 1 entries and decoder_widths 2",
    ):
        assert part in message


@pytest.mark.parametrize(
    "assignment",
    [
        "objective.lambda=0",
        "objective.kind=elbow",
        "model.kind=images",
        "model.widths=[]",
        "model.widths=[4, 0]",
        "model.stages=1",
        "model.dropout=1",
        "data.image_size=15",
        "data.holdout=1",
        "training.batch_size=1",
        "training.steps=0",
        "training.precision=fp16",
        "training.seed=1.5",
        "optimizer.lr=0",
        "optimizer.lr=.nan",
        "selection.rule=best",
        "evaluation.metric=manhattan",
    ],
)
def test_values_out_of_range_are_refused(assignment):
    key = assignment.partition("=")[0]
    assert f"{key} in --set: " in refusal(with_set, assignment)


def test_many_errors_are_cut_short():
    message = refusal(
        resolve,
        [STEPS, Layer("file", {f"key{n}": 1 for n in range(3000)}), Layer("b", {"data.set": "x"})],
    )
    assert "key0" in message and "and 2988 more" in message and len(message) < 2000
    assert (
        "…" in refusal(with_set, f"data.image_size={'x' * 5000}")
        and len(refusal(with_set, f"data.set=[{'x,' * 999}]")) < 300
    )


def test_a_number_with_an_exponent_may_be_a_whole_one():
    assert with_set("training.steps=1e4").config.training.steps == 10_000
    assert with_set("training.steps=2.5E+1").config.training.steps == 25
    assert "training.steps in --set" in refusal(with_set, "training.steps=1.5e0")
    assert "training.steps in --set" in refusal(with_set, "training.steps=1e400")


# ---- steps and epochs


def test_steps_and_epochs_exclude_each_other_within_a_layer():
    assert refusal(with_set, "training.steps=5", "training.epochs=5") == (
        "training.steps and training.epochs are both set"
    )


def test_one_of_steps_and_epochs_is_needed():
    assert refusal(resolve, []) == "training.steps and training.epochs are both unset"
    assert (
        refusal(with_set, "training.steps=null")
        == "training.steps and training.epochs are both unset"
    )


def test_a_missing_length_is_told_beside_other_errors():
    message = refusal(resolve, [Layer("file", {"objective.lambda": -1})])
    assert (
        "objective.lambda in file" in message
        and "training.steps and training.epochs are both unset" in message
    )
    both = refusal(with_set, "training.steps=5", "training.epochs=5", "data.sett=x")
    assert "'data.set'" in both and "training.steps and training.epochs are both set" in both


@pytest.mark.parametrize("first, second", [("steps", "epochs"), ("epochs", "steps")])
def test_a_later_choice_of_one_takes_back_an_earlier_choice_of_the_other(first, second):
    layers = [Layer("a", {f"training.{first}": 9}), Layer("b", {f"training.{second}": 3})]
    resolved = resolve(layers)
    assert getattr(resolved.config.training, first) is None
    assert getattr(resolved.config.training, second) == 3
    assert resolved.sources == {f"training.{second}": "b"}
    back = resolve([*layers, Layer("c", {f"training.{first}": 4})])
    assert getattr(back.config.training, first) == 4
    assert getattr(back.config.training, second) is None


def test_unsetting_one_leaves_the_other():
    resolved = resolve([STEPS, Layer("b", {"training.epochs": None})])
    assert resolved.config.training.steps == 10


# ---- environment and --set


def test_environment_names():
    layer = environment_layer(
        {
            "IIAE_SEED": "3",
            "IIAE_COMPILE": "true",
            "IIAE_DEVICE": "cuda:1",
            "IIAE_OPTIMIZER__LR": "1e-3",
            "IIAE_OBJECTIVE__LAMBDA": "50",
            "IIAE_MODEL__WIDTHS": "[8, 16]",
            "IIAE_RUN": "runs/a",
            "IIAE_DATA": "data",
            "SEED": "9",
            "OTHER__LR": "9",
        }
    )
    assert layer.source == "environment"
    resolved = resolve([*preset_layers("digits-cdcb"), layer])
    config = resolved.config
    assert (config.training.seed, config.training.compile, config.training.device) == (
        3,
        True,
        "cuda:1",
    )
    assert (config.optimizer.lr, config.objective.lam, config.model.widths) == (
        0.001,
        50.0,
        [8, 16],
    )
    assert {key for key, source in resolved.sources.items() if source == "environment"} == set(
        layer.values
    )
    assert len(layer.values) == 6


def test_the_environment_of_the_process_is_the_default(monkeypatch):
    monkeypatch.setenv("IIAE_SEED", "77")
    assert environment_layer().values["training.seed"] == 77


def test_a_misspelt_environment_name_is_told(capsys):
    layer = environment_layer(
        {"IIAE_SEEED": "3", "IIAE_RUNS": "x", "IIAE_RUN": "r", "IIAE_SEED": "4", "IIAEX": "1"}
    )
    assert layer.values == {"training.seed": 4}
    assert capsys.readouterr().err.splitlines() == [
        "warning: IIAE_SEEED is set, but means nothing, did you mean 'IIAE_SEED'?",
        "warning: IIAE_RUNS is set, but means nothing, did you mean 'IIAE_RUN'?",
    ]


def test_an_unknown_environment_key_is_refused():
    message = refusal(
        resolve, [*preset_layers("digits-cdcb"), environment_layer({"IIAE_TRAINING__SEEED": "1"})]
    )
    assert "unknown key 'training.seeed' in environment, did you mean 'training.seed'?" in message


def test_values_of_set_are_typed_as_yaml():
    config = with_set(
        "optimizer.lr=1e-3",
        "objective.annealing_steps=2.5E+4",
        "model.widths=[4, 8]",
        "data.image_size=null",
        "training.deterministic=yes",
        "data.set=a=b",
    ).config
    assert config.optimizer.lr == 0.001 and isinstance(config.optimizer.lr, float)
    assert config.objective.annealing_steps == 25000.0
    assert config.model.widths == [4, 8]
    assert config.data.image_size is None
    assert config.training.deterministic is True
    assert config.data.set == "a=b"


def test_a_set_that_is_no_assignment_or_no_yaml_is_refused():
    assert refusal(set_layer, ["training.seed"]) == "--set training.seed has no '='"
    assert refusal(set_layer, ["model.widths=[1, 2"]).startswith(
        "--set model.widths: '[1, 2' is no YAML value"
    )
    assert "is no YAML value" in refusal(set_layer, ["training.seed=!!python/object:os.system x"])
    assert refusal(environment_layer, {"IIAE_SEED": "[1"}).startswith(
        "IIAE_SEED: '[1' is no YAML value"
    )


# ---- presets


def test_the_shipped_presets():
    assert {"digits-cdcb", "digits-edge", "mnist-cdcb", "mnist-cdcb-32"} <= set(preset_names())
    assert all((preset_folder() / f"{name}.yaml").is_file() for name in preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_shipped_preset_resolves_and_survives_yaml(name):
    config = resolve(preset_layers(name)).config
    assert config.description
    again = yaml.safe_load(config.to_yaml())
    assert Config.model_validate(again) == config
    assert resolve([Layer("file", flatten(again))]).config == config


def test_yaml_keeps_awkward_values():
    config = with_set(
        "optimizer.lr=1e-5", "objective.lambda=1e20", "data.set='yes'", "description='a: b # c'"
    ).config
    again = Config.model_validate(yaml.safe_load(config.to_yaml()))
    assert again == config
    assert (again.optimizer.lr, again.objective.lam, again.data.set) == (1e-5, 1e20, "yes")
    assert again.description == "a: b # c"
    assert "lambda:" in config.to_yaml() and "lam:" not in config.to_yaml()


def test_the_mnist_preset_holds_the_papers_values():
    config = resolve(preset_layers("mnist-cdcb")).config
    objective, optimizer, model = config.objective, config.optimizer, config.model
    assert (objective.kind, objective.lam, objective.reconstruction) == ("elbo+ii-mi", 5, "l1")
    assert (objective.reconstruction_weight, objective.annealing_steps) == (1000, 25000)
    assert (optimizer.lr, optimizer.beta1, optimizer.beta2) == (2e-4, 0.5, 0.999)
    assert (optimizer.schedule, optimizer.warmup_steps) == ("constant", 0)
    assert (model.widths, model.decoder_widths) == ([32, 64, 128, 256], [512, 256, 128, 64])
    assert (model.shared, model.exclusive, model.dropout) == (128, 8, 0.5)
    assert (config.data.image_size, config.training.batch_size) == (256, 8)
    assert (config.selection.rule, config.selection.validate_on) == ("paper", "train")
    assert (config.selection.validation_pairs, config.selection.first_epoch) == (800, 6)


def test_a_preset_extends_others_by_name_and_by_file(tmp_path):
    write(
        tmp_path / "base" / "a.yaml",
        "extends: digits-edge\ntraining: {batch_size: 16, log_every: 3}\n",
    )
    child = write(
        tmp_path / "top" / "b.yml", "extends: ../base/a.yaml\ntraining: {batch_size: 17}\n"
    )
    resolved = resolve(preset_layers(child))
    training, sources = resolved.config.training, resolved.sources
    assert (training.batch_size, sources["training.batch_size"]) == (17, child)
    assert (training.log_every, training.steps) == (3, shipped("digits-edge")["training"]["steps"])
    assert sources["training.log_every"].endswith("a.yaml")
    assert sources["training.steps"] == "preset digits-edge"
    assert sources["objective.lambda"] == "preset digits-cdcb"
    assert resolved.config.data.set == "digits-edge"


def test_a_chain_that_bites_its_tail_is_refused(tmp_path):
    first = write(tmp_path / "a.yaml", "extends: b.yaml\n")
    write(tmp_path / "b.yaml", "extends: a.yaml\n")
    message = refusal(preset_layers, first)
    assert "extends itself" in message and "a.yaml" in message
    assert "extends itself" in refusal(
        preset_layers, write(tmp_path / "c.yaml", "extends: c.yaml\n")
    )


def test_missing_presets_are_refused_with_what_there_is(tmp_path):
    assert (
        refusal(preset_layers, "digit-cdcb")
        == "unknown preset 'digit-cdcb', did you mean 'digits-cdcb'?"
    )
    with pytest.raises(IiaeError) as caught:
        preset_layers(str(tmp_path / "none.yaml"))
    assert "none.yaml does not exist" in caught.value.message
    assert "mnist-cdcb" in caught.value.hint
    parent = write(tmp_path / "a.yaml", "extends: digits\n")
    assert "unknown preset 'digits'" in refusal(preset_layers, parent)


@pytest.mark.parametrize(
    "text, said",
    [
        (b"training: [1\nmodel: 2\n", "is not valid YAML"),
        (b"\xff\xfe\x00broken", "is not valid YAML"),
        (b"when: 2020-13-45\n", "is not valid YAML"),
        (b"- a\n- b\n", "does not hold a mapping"),
        (b"3: 4\n", "does not hold a mapping"),
        (b"extends: [a, b]\n", "is not a name"),
    ],
)
def test_a_bad_preset_file_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    message = refusal(preset_layers, str(path))
    assert said in message and str(path) in message and "\n" not in message


def test_an_empty_preset_file_changes_nothing(tmp_path):
    empty = write(tmp_path / "empty.yaml", "# nothing yet\n")
    assert resolve([*preset_layers(empty), STEPS]).config == resolve([STEPS]).config


def test_reading_a_file_that_is_not_there_is_a_users_error(tmp_path):
    assert "cannot read" in refusal(read_yaml, tmp_path / "none.yaml")


# ---- help


def test_every_key_has_one_line_of_help():
    texts = key_help()
    assert set(texts) == set(known_keys())
    for key, text in texts.items():
        assert text and "\n" not in text, key
    assert "objective.lambda" in texts


def test_flatten_keeps_lists_and_nests_names():
    assert flatten({"a": {"b": [1, {"c": 2}], "d": {"e": None}}, "f": 3}) == {
        "a.b": [1, {"c": 2}],
        "a.d.e": None,
        "f": 3,
    }
