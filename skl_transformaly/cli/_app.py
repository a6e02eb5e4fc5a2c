"""The command line's frame: the application, options that commands share, errors and exit codes.

Exit codes: 0 done; 1 anomalies were found and ``--fail-on-anomaly`` was given; 2 a wrong command line, or something
to be mended first (a missing folder, a broken model, a full disk); 3 a bug; 130 stopped by Ctrl-C.

Each command is a file of its own, ``@app.command()`` above ``@command``, and is listed in ``_commands``. Libraries that
take long to import are imported by the commands that use them: ``--help`` is for impatient people.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer

from skl_transformaly.cli._console import Output, plain, say

__all__ = [
    "BUG",
    "Debug",
    "FOUND",
    "INTERRUPTED",
    "Json",
    "MISTAKE",
    "Mistake",
    "Model",
    "Output",
    "PIPE_CLOSED",
    "Paths",
    "Quiet",
    "Weights",
    "app",
    "command",
    "fail",
    "plain",
    "run",
    "say",
]


FOUND, MISTAKE, BUG, INTERRUPTED, PIPE_CLOSED = 1, 2, 3, 130, 141

app = typer.Typer(
    name="transformaly",
    help="Find anomalous images, learning from normal images only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 anomalies found (--fail-on-anomaly), 2 wrong usage or input, 3 a bug.",
)

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file that `fit` made.", show_default=False)]
Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATHS",
        help="Images, folders (with those in them) and patterns ('new/**/*.png'); - reads a list of paths, one a line "
        "or separated by NULs.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="The teacher's weights, for a model that was saved without them."),
]
Json = Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


class Mistake(Exception):
    """What the user should know and mend; printed without traceback."""


def fail(text: str, code: int = MISTAKE) -> NoReturn:
    say(f"error: {text}")
    raise typer.Exit(code)


def command(function: Callable) -> Callable:
    """Turn what a command raises into a message and an exit code."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return function(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            fail("stopped.", INTERRUPTED)
        except BrokenPipeError:
            # the reader of stdout has gone: nothing may be written there, not even at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(PIPE_CLOSED) from None
        except Exception as error:
            message = _mistake(error)
            if kwargs.get("debug") or message is None:
                traceback.print_exc()
            if message is None:
                fail(f"this is a bug ({type(error).__name__}).", BUG)
            fail(message)

    return guarded


def _mistake(error: Exception) -> str | None:
    """The message for an error that the user can mend; None for a bug."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full: {error.filename or error.strerror}. Make room and try again."
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error).lower()):
        return "not enough memory: use smaller batches (--batch-size of fit), or smaller images. " + str(error)
    if isinstance(error, (Mistake, ValueError, OSError, ImportError, FloatingPointError)):
        from skl_transformaly.images._values import SKIP_ADVICE

        return str(error).removesuffix(SKIP_ADVICE) or type(error).__name__
    return None


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    # unreadable images are listed by the commands themselves, each with its reason
    if "could not be read" not in str(message):
        say(f"warning: {message}")


def _stop(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def run() -> None:
    """Run the command line and leave the process."""
    # so that files are closed, and half-written files are removed
    signal.signal(signal.SIGTERM, _stop)
    app()
