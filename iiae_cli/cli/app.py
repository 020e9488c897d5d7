"""The command line: signatures, help, examples, and the one place where an error becomes two lines and an exit code.

Nothing here imports torch: each command's module is imported when it runs, so that `--help` stays fast.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from iiae_cli import __version__
from iiae_cli.cli import encode, evaluate, prepare, retrieve, train, translate
from iiae_cli.common import console
from iiae_cli.common.errors import (
    EXIT_CTRL_C,
    EXIT_USER_ERROR,
    IiaeError,
    Interrupted,
)

# typer may vendor click, so its exception classes are reached through typer's own.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

# torch's CPU allocator, and what it says of sizes that no allocator takes.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")

app = typer.Typer(
    name="iiae",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(value: bool) -> None:
    if value:
        console.print_line(f"iiae {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("-v", "--verbose", help="Say more on stderr: train's values and sources."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Say only warnings and errors on stderr.")
    ] = False,
) -> None:
    """Cross-domain disentanglement with the Interaction Information Auto-Encoder (IIAE).

    Two domains, x and y, hold pairs. A shared latent learns what both hold, an exclusive latent of each what only it
    holds. Results go to stdout, everything else to stderr.

    \b
    Start here:
      iiae train --preset digits-cdcb          a minute on a CPU, nothing to download
      iiae evaluate                            Recall@1 beside a training-free baseline
      iiae encode imgs/ --domain y -o z.h5
      iiae retrieve query.png --k 5
      iiae translate query.png --from x --grid grid.png
    """
    console.set_verbosity(1 if verbose else -1 if quiet else 0)


for _command in (prepare, train, encode, retrieve, translate, evaluate):
    app.command(_command.__name__.rpartition(".")[2])(_command.command)


def _guarded(call: Callable[[], int]) -> int:
    """The error boundary: an exit code for everything a user can cause; a bug passes with its traceback (exit 1)."""
    try:
        return call()
    except IiaeError as error:
        console.fail(error.message, error.hint)
        return error.exit_code
    except Interrupted as stopped:
        if stopped.where:
            console.warn(f"interrupted: {stopped.where}")
        return stopped.exit_code
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "iiae"
        console.fail(error.format_message(), f"{path} --help shows options and examples")  # type: ignore[attr-defined]
        return EXIT_USER_ERROR
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        console.fail(
            f"there is not enough memory: {error or 'Python could get no more'}",
            "take a smaller --batch-size, smaller pictures or a smaller model, or another --device",
        )
        return EXIT_USER_ERROR
    except (KeyboardInterrupt, typer.Abort):
        console.warn("interrupted")
        return EXIT_CTRL_C


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether an error says so: torch's are of several types, and torch may not be imported here."""
    text = str(error)
    names = {one.__name__ for one in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or any(
        one in text for one in _NO_MEMORY
    )


def _calm_threads() -> None:
    """Keep waiting OpenMP threads from spinning long; must run before torch is imported.

    By default they spin for milliseconds at every barrier. Where another process wants a core (a shared node, a laptop)
    the spinning takes the very time that the last thread needs: a training step of the 32×32 models took 2.3 s instead
    of 0.05 s on two cores. A short spin costs about a tenth on an idle machine.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def main() -> None:
    """Entry point of the console script."""
    _calm_threads()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names go out as they came in
    arguments = sys.argv[1:] or ["--help"]

    def call() -> int:
        code = app(arguments, prog_name="iiae", standalone_mode=False)
        return code if isinstance(code, int) else 0

    sys.exit(_guarded(call))
