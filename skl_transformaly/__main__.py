"""The command `transformaly`, also as ``python -m skl_transformaly``."""

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> None:
    """Run the command line; if its library is missing, tell how to get it."""
    try:
        from skl_transformaly.cli._commands import run

        run()
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        _give_up("the command line needs typer: pip install 'skl-transformaly[cli]'")
    except (ImportError, MemoryError) as error:  # a file of a library that is there
        _give_up(f"a library could not be loaded; is there too little memory? {error or 'MemoryError'}")


def _give_up(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
