"""The page's cells, and what HTML cannot carry."""

import re
from importlib.resources import files

from iiae_cli.evaluation.tables import Table
from iiae_cli.report.page import cell, render


def test_cells_are_short():
    values = (None, "", 0.99666, 1.0, 1234.5, 0.0000123, 12345, True, [1, "a"], float("nan"))
    shown = ["—", "—", "0.9967", "1", "1,234.5", "1.2e-05", "12,345", "True"]
    assert [cell(value) for value in values] == [*shown, '[1, "a"]', "nan"]


def test_what_html_cannot_carry_is_replaced():
    template = files("iiae_cli.report").joinpath("templates/report.html").read_text()
    names = re.findall(r"{[{%] (?:if |for .* in )?([a-z_]+)", template)
    values = dict.fromkeys(names, ())
    table = Table("\udcff\x00 <b>", ["a"], [])
    tables = dict.fromkeys(("usage", "dimensions", "protocol", "versions", "facts"), table)
    text = render(**values | tables | {"title": "\udcff", "warnings": ["\x1b"]})
    assert "\ufffd\ufffd &lt;b&gt;" in text
    assert "\udcff" not in text and "\x1b" not in text
    assert text.startswith("<!doctype html>")
