"""The command `transformaly`, also as ``python -m skl_transformaly``."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; where its library is missing, say how to get it."""
    try:
        from skl_transformaly.cli import run
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.stderr.write("error: the command line needs typer: pip install 'skl-transformaly[cli]'\n")
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
