"""The program: its commands, the global options, and the one error boundary.

A command's module is imported when it is called, so that completion and `--help` stay fast.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from iiae_cli import __version__
from iiae_cli.cli.options import GROUPS, option, take_seen
from iiae_cli.common import console
from iiae_cli.common.environment import cores
from iiae_cli.common.errors import EXIT_CTRL_C, EXIT_USER_ERROR, IiaeError, Interrupted, plain_words
from iiae_cli.common.files import refusal_of_system

# From 0.26 on typer contains click, so click's exception is taken from typer's.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

# Messages with which torch reports lack of memory; Python raises MemoryError.
_NO_MEMORY = r"(out of|can't allocate|not enough) memory|Storage size calculation overflowed"

# Each command's help line; its module in this folder has its name, but for `presets`.
COMMANDS = {
    "prepare": "Write a data set as one file.",
    "train": "Train a model and leave a run directory.",
    "encode": "Encode pictures into a latent cache.",
    "retrieve": "Find the gallery's nearest pictures.",
    "translate": "Translate pictures to the other domain.",
    "evaluate": "Measure a run beside a training-free baseline.",
    "export": "Write a run for other programs, or to the hub.",
    "presets": "List what `train` can start from.",
    "doctor": "Check versions, extras, devices, folders and locks.",
}
_SETTINGS: dict[str, Any] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 100},
}


class _Command(TyperCommand):
    """A command whose help shows each `rich_help_panel` as a plain section."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Names arguments without the braces that newer versions of typer put around them."""
        return [re.sub("[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes arguments, then options by group."""
        sections: dict[str, list[Any]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            of_option = parameter.param_type_name == "option"
            kind = "Options" if of_option else "Arguments"
            panel = getattr(parameter, "rich_help_panel", None) or kind
            if record := parameter.get_help_record(ctx):
                line = _plain(record[0], of_option), record[1]
                sections.setdefault(panel, []).append(line)
        last = {group: place for place, group in enumerate(GROUPS)}  # groups of several commands
        for title in sorted(sections, key=lambda title: last.get(title, -1)):
            if sections[title]:
                with formatter.section(title):
                    formatter.write_dl(sections[title])


def _plain(name: str, of_option: bool) -> str:
    """Writes `--run PATH` for typer's `--run <path>`, and arguments by their names alone."""
    name, _, typers = name.partition(" <")
    kind = {"str": "TEXT", "path": "PATH", "list[Path]": "PATH"}.get(typers[:-1], typers[:-1])
    return f"{name} {kind}" if kind and of_option else name


class _Group(TyperGroup):
    """A group whose commands are names and lines of help until they are called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Returns the command that is called, imported, and its arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            module, function = ("train", "presets") if name == "presets" else (name, "command")
            single = typer.Typer(add_completion=False, **_SETTINGS)
            imported = import_module(f"iiae_cli.cli.{module}")
            single.command(name, cls=_Command)(getattr(imported, function))
            command = typer.main.get_command(single)
        return name, command, rest


app = typer.Typer(name="iiae", cls=_Group, **_SETTINGS)
for _name, _line in COMMANDS.items():
    app.command(_name, help=_line)(lambda: None)


def _version(value: bool) -> None:
    if value:
        console.print_line(f"iiae {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: bool = option(
        False, "Print the version and exit.", "--version", callback=_version, is_eager=True
    ),
    verbose: bool = option(
        False, "Say more on stderr: train's values and sources.", "-v", "--verbose"
    ),
    quiet: bool = option(False, "Say only warnings and errors on stderr.", "-q", "--quiet"),
) -> None:
    """Cross-domain disentanglement with the Interaction Information Auto-Encoder (IIAE).

    Two domains, x and y, hold pairs. A shared latent learns what both hold, an exclusive latent
    per domain what only that domain holds. Results go to stdout, everything else to stderr.

    \b
    Start here:
      iiae train digits-cdcb     two minutes on a CPU, nothing to download
      iiae evaluate              Recall@1 beside a training-free baseline
      iiae encode imgs/ --domain y -o z.h5
      iiae retrieve query.png --k 5
      iiae translate query.png --from x --grid grid.png
      iiae presets               what training can start from
      iiae doctor                what this machine offers
    """
    console.set_verbosity(1 if verbose else -1 if quiet else 0)


def main() -> None:
    """Runs the program on `sys.argv` and exits."""
    _calm_threads()
    console.prepare_streams()
    threading.excepthook = _in_thread
    arguments = sys.argv[1:] or ["--help"]
    if "_IIAE_COMPLETE" in os.environ:
        for kind in (TyperArgument, TyperOption):  # typer's conversion of values imports pydantic
            kind.process_value = lambda self, ctx, value: value  # type: ignore[method-assign]
    sys.exit(_exit_code(lambda: app(arguments, prog_name="iiae", standalone_mode=False)))


def _in_thread(error: threading.ExceptHookArgs) -> None:
    """Leaves a thread's OSError, such as TensorBoard's, to whoever waits for the thread."""
    if not isinstance(error.exc_value, OSError):
        threading.__excepthook__(error)


def _exit_code(call: Callable[[], object]) -> int:
    """Returns the exit code of a call, printing what a user can mend; bugs keep their traceback."""
    try:
        Path.cwd()  # libraries end the process if the working folder was deleted
        code = call()
        console.flush_results()
        return code if isinstance(code, int) else 0
    except (IiaeError, OSError) as error:
        refusal = error if isinstance(error, IiaeError) else refusal_of_system(error)
        if refusal is None:
            raise
        take_seen()
        console.fail(refusal.message, refusal.hint)
        return EXIT_USER_ERROR
    except Interrupted as stopped:
        if stopped.where:
            console.warn(f"interrupted: {stopped.where}")
        return stopped.exit_code
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "iiae"
        message: str = getattr(error, "format_message", error.__str__)()
        console.fail(plain_words(message), f"{path} --help shows options and examples")
        return EXIT_USER_ERROR
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(_NO_MEMORY, str(error)):
            raise
        console.fail(
            f"there is not enough memory: {error or 'Python could get no more'}",
            "take a smaller --batch-size, smaller pictures or a smaller model, or another --device",
        )
        return EXIT_USER_ERROR
    except SystemExit:  # typer raises it if the reader of its help, such as `head`, exits
        return 0
    except (KeyboardInterrupt, typer.Abort):
        console.warn("interrupted")
        return EXIT_CTRL_C


def _calm_threads() -> None:
    """Limits threads to the cores and lets waiting ones sleep early; runs before torch is imported.

    By default they spin at every barrier, and a step of the 32×32 models took 2.3 s instead of 0.05
    s on two cores that another process used too. This costs a tenth on an idle machine.
    """
    threads = os.environ.get("IIAE_THREADS", "")
    if threads.isdigit() and int(threads):
        os.environ["OMP_NUM_THREADS"] = threads
    if cores() < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
