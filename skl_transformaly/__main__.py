"""The command `transformaly`, also as ``python -m skl_transformaly``."""

import os
import sys
from collections.abc import MutableMapping
from typing import NoReturn

__all__ = ["main"]


def main() -> None:
    """Run the command line; if its library is missing, tell how to get it."""
    _wait_briefly(os.environ)
    _open_streams()
    try:
        from skl_transformaly.cli._commands import run

        run()
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        _give_up("the command line needs typer: pip install 'skl-transformaly[cli]'")
    except (ImportError, MemoryError) as error:  # a file of a library that is there
        _give_up(f"a library could not be loaded; is there too little memory? {error or 'MemoryError'}")


def _wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Let threads of OpenMP sleep soon if they wait for each other, unless the user has said how they wait.

    By default they keep the processor from whatever else runs on it, even from the thread that they wait for: beside
    one busy process, a fit takes several times as long (``benchmarks/speed/waiting.py``). GCC's library reads this when
    torch loads it.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "3000")


def _open_streams() -> None:
    """Open what the caller has closed, as daemons do (``2>&-``): Python has None there, and nothing to write to."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


def _give_up(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
