"""Every command that README, docs and help show is one that the program takes."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer.main
from helpers import call

from iiae_cli.cli.app import COMMANDS, app

ROOT = Path(__file__).parent.parent
PAGES = [path.name for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
SHOWN = re.compile(r"^(?:.*?(?:srun\S*|[|&;]|--\S+=\d)\s)?\s*iiae (.*)$")


def commands(page):
    """The words after `iiae` of all indented lines of a page, or of a command's help, continued
    lines joined.
    """
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    text = call(page, "--help").out if page in COMMANDS else path.read_text(encoding="utf-8")
    text = re.sub(r"\\\n\s+", "", text)
    text = re.sub(r"\$\w+", "0", text)  # a loop's seed, a job's folder
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    shown = filter(None, map(SHOWN.match, lines))
    words = [shlex.split(match[1], comments=True) for match in shown]
    return [row for row in map(alone, words) if row and {*row[:2]} & {*COMMANDS}]


def alone(words):
    """The words of a command before a pipe, a redirection or an ampersand."""
    ends = [place for place, word in enumerate(words) if word in ("|", "&", "&&", ">", ";")]
    return words[: min(ends, default=len(words))]


@cache
def command_named(name):
    return typer.main.get_command(app).resolve_command(None, [name])[1]  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", [*PAGES, *COMMANDS])
def test_every_command_shown_is_taken(page):
    for words in commands(page):
        name, *rest = (word for word in words if word not in ("-q", "-v"))
        assert command_named(name).make_context(name, rest).params, words


def test_commands_are_found_in_all_forms():
    least = {"README.md": 14, "hpc.md": 8, "reproduce.md": 15, **dict.fromkeys(COMMANDS, 3)}
    assert all(len(commands(page)) >= count for page, count in least.items())
