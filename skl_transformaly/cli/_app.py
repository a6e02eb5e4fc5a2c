"""The command line's frame: the application, options that commands share, errors and exit codes.

Exit codes: 0 done; 1 anomalies were found with ``--fail-on-anomaly``; 2 wrong usage or input (such as a missing
folder, a broken model or a full disk); 3 a bug; 130 stopped by Ctrl-C or SIGTERM; 141 stdout was closed.

Each command is a function decorated with ``@command()``, in a file that ``_commands`` lists. Libraries that are slow to
import are imported by the commands that use them, so that ``--help`` is fast.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import os
import re
import signal
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO, get_type_hints

import typer
from typer.core import TyperCommand

from skl_transformaly.cli._console import Output, command_line, plain, say
from skl_transformaly.utils._warnings import SomeImagesWarning

__all__ = [
    "BUG",
    "FOUND",
    "INTERRUPTED",
    "MISTAKE",
    "Mistake",
    "Model",
    "OUT",
    "Output",
    "PIPE_CLOSED",
    "Paths",
    "Weights",
    "app",
    "command",
    "fail",
    "in_options",
    "plain",
    "run",
    "say",
]


FOUND, MISTAKE, BUG, INTERRUPTED, PIPE_CLOSED = 1, 2, 3, 130, 141
# What parameters that messages of the library name are called here.
_OPTIONS = {
    "batch_size": "--batch-size",
    "contamination": "--alpha",
    "device": "--device",
    "extractor": "--teacher",
    "image_size": "--image-size",
    "max_epochs": "--epochs",
    "n_blocks": "--blocks",
    "random_state": "--seed",
    "trim": "--trim",
    "weights": "--weights",
}
# A text in quotes, such as a path, is left as it is, unless it is a parameter's value.
_QUOTED = r"(?<![\w=])(?:'[^'\n]*'|\"[^\"\n]*\")(?!\w)"
_PARAMETER = re.compile(rf"{_QUOTED}|\b({'|'.join(_OPTIONS)})=('[^']*'|\"[^\"]*\"|\([^)]*\)|\w+(?:[.-]\w+)*)")
# Of a warning that came again, as many characters are shown the second time
_MOST_CHARACTERS = 80

app = typer.Typer(
    name="transformaly",
    help="Find anomalous images, learning from normal images only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 anomalies found (--fail-on-anomaly), 2 wrong usage or input, 3 a bug, "
    "130 interrupted, 141 stdout was closed.",
)


OUT = ("--out", "--output", "-o")
"""Names of the option for the main output file of a command."""

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file that `fit` made.", show_default=False)]
Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATHS",
        help="Images, folders (with subfolders) and patterns ('new/**/*.png'); - reads a list of paths from stdin, one "
        "per line or separated by NULs.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="The teacher's weights, for a model that was saved without them."),
]
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no summary.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


class Mistake(Exception):
    """An error that the user can correct; printed without traceback."""


def fail(text: str, code: int = MISTAKE) -> NoReturn:
    say(f"error: {text}")
    raise typer.Exit(code)


def command(*, json: bool = True, quiet: bool = True) -> Callable[[Callable], Callable]:
    """Make a function a command, whose errors become a message and an exit code.

    Options that commands share are added to its own: --debug, and --json and --quiet unless the command lacks them. The
    :class:`Output` that they ask for is the function's first argument.
    """
    shared = {"as_json": Json, "quiet": Quiet, "debug": Debug}
    if not json:
        del shared["as_json"]
    if not quiet:
        del shared["quiet"]

    def register(function: Callable) -> Callable:
        @functools.wraps(function)
        def guarded(**given: Any) -> None:
            own = {name: value for name, value in given.items() if name not in shared}
            out = Output(given.get("as_json", False), given.get("quiet", False), given.get("debug", False))
            _guard(lambda: function(out, **own), out.debug)

        hints = get_type_hints(function, include_extras=True)
        first, *own = inspect.signature(function).parameters.values()
        added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False) for name in shared]
        guarded.__annotations__ = {name: kind for name, kind in hints.items() if name != first.name} | shared
        parameters = [item.replace(annotation=guarded.__annotations__[item.name]) for item in (*own, *added)]
        guarded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return app.command(cls=_Command)(guarded)

    return register


class _Command(TyperCommand):
    """A command that refuses empty arguments, since "" as a path would be the current folder, and repeated options.

    Otherwise the first value of an option that is given twice would be silently lost: half of the labels, or a folder.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if any(not arg or (arg.startswith("--") and arg.endswith("=") and arg.count("=") == 1) for arg in args):
            fail("an argument is empty, perhaps a variable that is not set; expected a path or a value.")
        own = {name for option in self.params for name in option.opts}
        for arg in args[: args.index("--") if "--" in args else None]:
            name = arg.partition("=")[0]
            here = _OPTIONS.get(name.removeprefix("--").replace("-", "_"), name)
            if name.startswith("--") and name not in own and here in own:
                fail(f"no such option: {name}. Use {here} instead.")
        given: list[Any] = self.make_parser(ctx).parse_args(list(args))[2]
        for option in given:
            if given.count(option) > 1 and not (option.is_flag or option.multiple):
                fail(f"{max(option.opts, key=len)} takes one value, but is given several times.")
        return super().parse_args(ctx, args)


def _print_version(asked: bool) -> None:
    if asked:
        from skl_transformaly import __version__

        typer.echo(f"skl-transformaly {__version__}")
        raise typer.Exit


@app.callback()
def _options_without_command(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Options that need no command."""


def _guard(work: Callable[[], None], debug: bool) -> None:
    """Do the work of a command; errors become a message and an exit code."""
    if hasattr(sys.stdout, "reconfigure"):  # a name that the terminal's encoding lacks must not lose a result
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings(), contextlib.closing(_Warnings()) as shown:
            warnings.showwarning = shown
            work()
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        fail("stopped.", INTERRUPTED)
    except Exception as error:
        if _is_closed_pipe(error):
            _discard_stdout()
            raise typer.Exit(PIPE_CLOSED) from None
        message = _mistake(error)
        if debug or message is None:
            traceback.print_exc()
        if message is None:
            fail(f"this is a bug ({type(error).__name__}).", BUG)
        fail(message)


def _is_closed_pipe(error: BaseException | None) -> bool:
    """Whether nobody reads stdout any more, which Windows may call an invalid argument."""
    if isinstance(error, BrokenPipeError):
        return True
    if os.name != "nt" or not isinstance(error, OSError) or error.errno != errno.EINVAL or error.filename is not None:
        return False
    try:
        sys.stdout.flush()  # what could not be written is still to be written
    except OSError:
        return True
    return False


def _discard_stdout() -> None:
    """Write to stdout no more, since nobody reads it, not even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _mistake(error: Exception) -> str | None:
    """Return the message for an error that the user can correct; None for a bug."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        what = str(error.filename or error.strerror)
        return f"the disk is full: {what}." + ("" if "Make room" in what else " Make room and try again.")
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}." if error.filename is None else f"{error.filename}: {error.strerror}."
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return "not enough memory: use smaller batches (--batch-size of fit), or smaller images. " + str(error)
    if isinstance(error, RuntimeError) and "torchvision::" in str(error):
        from skl_transformaly.utils._compat import torchvision_advice

        return torchvision_advice(error)
    if isinstance(error, (Mistake, ValueError, OSError, ImportError, FloatingPointError)):
        from skl_transformaly.images._values import SKIP_ADVICE

        return in_options(str(error).removesuffix(SKIP_ADVICE)) or type(error).__name__
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Whether torch ran out of memory, of the machine or of an accelerator."""
    if not isinstance(error, RuntimeError):
        return False
    from skl_transformaly.utils._torch import OUT_OF_MEMORY

    return any(words in str(error) for words in OUT_OF_MEMORY)


def in_options(text: str) -> str:
    """Put a message of the library, which names parameters, in terms of the command line.

    >>> in_options("trim=0.1 of 8 images is less than one; device='xpu' cannot be used here: leave device=None.")
    '--trim 0.1 of 8 images is less than one; --device xpu cannot be used here: leave out --device.'
    """
    text = re.sub(rf"\b([Ll]eave|[Uu]se) ({'|'.join(_OPTIONS)})=None", _left_out, text)

    def option(found: re.Match) -> str:
        if found[1] is None:
            return found[0]
        value = found[2].strip("'\"")
        if found[1] == "image_size" and value.startswith("("):
            value = value.strip("()").replace(", ", "x")
        return f"{_OPTIONS[found[1]]} {command_line([value])}"

    return _PARAMETER.sub(option, text)


def _left_out(found: re.Match) -> str:
    return f"{'L' if found[1][0].isupper() else 'l'}eave out {_OPTIONS[found[2]]}"


def is_of_large_files(category: type[Warning]) -> bool:
    """Whether it is Pillow's, which takes large files for attacks; but the user has named them."""
    return category.__name__ == "DecompressionBombWarning"


class _Warnings:
    """Shows the warnings of a command, each kind once: commands score in chunks, each of which has its own warnings.

    Of one kind are texts that differ in numbers only, and those that say the same of some of the images.
    """

    def __init__(self) -> None:
        self._told: dict[str, str] = {}  # the first text of each kind
        self._again: set[str] = set()  # kinds that came again
        self._images: dict[str, set[str]] = {}  # names of images by kind, if its texts are about some of them

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if is_of_large_files(category):
            return
        text = in_options(str(message))
        kind = re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", text)
        if isinstance(message, SomeImagesWarning):
            kind = message.what
            self._images.setdefault(kind, set()).update(message.names)
            if len(message.names) > 1:  # of how many in all, a chunk does not know
                text = re.sub(r"\b(\d+) of \d+ images\b", r"\1 images", text, count=1)
        # unreadable images are listed by the commands themselves, each with its reason
        if "could not be read" in text:
            return
        if kind in self._told:
            self._again.add(kind)
        else:
            self._told[kind] = text
            say(f"warning: {text}")

    def close(self) -> None:
        """Say which warnings came again, since their numbers are those of the first images."""
        for kind, text in self._told.items():
            if kind in self._again and kind in self._images:
                say(f"warning: in all, {len(self._images[kind])} images {kind}.")
            elif kind in self._again:
                say(f"warning: later images, too: {textwrap.shorten(text, _MOST_CHARACTERS, placeholder=' ...')}")


def _stop(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def run() -> None:
    """Run the command line and leave the process."""
    # so that files are closed, and half-written files are removed
    signal.signal(signal.SIGTERM, _stop)
    for name in ("SIGHUP", "SIGBREAK"):  # of POSIX, which nohup ignores, and of Windows
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _stop)
    try:
        app(windows_expand_args=False)  # commands expand patterns themselves
    except SystemExit as end:
        # typer and rich end with 1, the code of anomalies, if nobody reads their help
        if not _is_closed_pipe(end.__context__):
            raise
        _discard_stdout()
        sys.exit(PIPE_CLOSED)
    except Exception as error:  # beyond what `_guard` sees; Python's own exit code is that of anomalies
        if _is_closed_pipe(error):
            _discard_stdout()
            sys.exit(PIPE_CLOSED)
        # typer imports some libraries when it reads arguments: without memory for them, `main` says so
        if isinstance(error, (ImportError, MemoryError)) and not isinstance(error, ModuleNotFoundError):
            raise
        traceback.print_exc()
        sys.exit(BUG)
