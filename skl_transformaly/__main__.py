"""The command `transformaly`, also as ``python -m skl_transformaly``."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; where its libraries are missing, say how to get them."""
    try:
        from skl_transformaly.cli import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.stderr.write(f"error: the command line needs {error.name}: pip install 'skl-transformaly[cli]'\n")
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
