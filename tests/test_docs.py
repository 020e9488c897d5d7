"""Every command that README and docs show is one that the program takes."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from iiae_cli.cli.app import COMMANDS, app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = re.compile(r"^(?:.*?(?:srun\S*|[|&;]|--\S+=\d)\s)?\s*iiae (.*)$")


def commands(page):
    """The words after `iiae` of all indented lines of a page, continued lines joined."""
    text = re.sub(r"\\\n\s+", "", page.read_text(encoding="utf-8"))
    text = re.sub(r"\$\w+", "0", text)  # a loop's seed, a job's folder
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    shown = filter(None, map(SHOWN.match, lines))
    words = [shlex.split(match[1], comments=True) for match in shown]
    return [row for row in map(alone, words) if row and {*row[:2]} & {*COMMANDS}]


def alone(words):
    """The words of a command before a pipe, a redirection or an ampersand."""
    ends = [place for place, word in enumerate(words) if word in ("|", "&", "&&", ">", ";")]
    return words[: min(ends, default=len(words))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_is_taken(page):
    program = typer.main.get_command(app)
    for words in commands(page):
        words = [word for word in words if word not in ("-q", "-v")]
        command = program.get_command(None, words[0])  # type: ignore[attr-defined]
        assert command.make_context(words[0], words[1:]).params, words


def test_commands_are_found_in_all_forms():
    counts = {page.name: len(commands(page)) for page in PAGES}
    assert counts["README.md"] >= 14 and counts["hpc.md"] >= 8 and counts["reproduce.md"] >= 15
