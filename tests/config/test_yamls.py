"""YAML as configurations use it."""

import time

import pytest
import yaml

from iiae_cli.config.yamls import load_yaml


def test_plain_values_are_what_pyyaml_makes_of_them():
    text = "a: {b: [1, 2.5, yes, null, text, 2001-01-01], c: &x {d: 1}, e: *x}\nf: {<<: *x, g: 1.0e+3}\n"
    assert load_yaml(text) == yaml.safe_load(text)
    assert load_yaml("") is None


@pytest.mark.parametrize(
    "text, value", [("1e4", 1e4), ("2.5E+4", 2.5e4), ("-1e-3", -1e-3), (".5e2", 50.0), ("1e", "1e")]
)
def test_an_exponent_makes_a_number(text, value):
    assert load_yaml(text) == value and type(load_yaml(text)) is type(value)


@pytest.mark.parametrize("text", ["a: 1\na: 2", "b: {x: 1, y: 2, x: 3}", "- {k: 1, k: 1}"])
def test_a_key_twice_is_refused(text):
    with pytest.raises(yaml.YAMLError, match="given twice"):
        load_yaml(text)


def test_a_merged_key_may_be_given_again():
    assert load_yaml("a: &a {x: 1, y: 1}\nb: {<<: *a, x: 2}")["b"] == {"x": 2, "y": 1}


@pytest.mark.parametrize("form", ["list", "mapping", "merge"])
def test_billion_laughs_are_refused_at_once(form):
    lines = ["a0: &a0 {x: 1}"]
    for one in range(1, 30):
        names = ", ".join([f"*a{one - 1}"] * 10)
        body = {
            "list": f"[{names}]",
            "mapping": f"{{k: [{names}]}}",
            "merge": f"{{<<: [{names}]}}",
        }[form]
        lines.append(f"a{one}: &a{one} {body}")
    started = time.process_time()
    with pytest.raises(yaml.YAMLError, match="10000 values"):
        load_yaml("\n".join(lines))
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "[" * 5000,
        "x: '" + "a" * 2**20 + "'",
        "!!python/name:os.system x",
        "a: !!int ''",
        "a: 1\n---\nb: 2",
    ],
)
def test_what_is_no_plain_value_is_refused(text):
    with pytest.raises((yaml.YAMLError, ValueError)):
        load_yaml(text)
