"""``transformaly serve``: a model behind HTTP."""

from __future__ import annotations

import math
from pathlib import Path
from socket import socket
from typing import Annotated

import typer

from skl_transformaly.cli._app import Mistake, Output, Weights, command
from skl_transformaly.cli._inputs import check_model

__all__ = ["serve"]

_OPEN_HOSTS = ("127.0.0.1", "::1", "localhost")


ModelOrOnnx = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="A model file that `fit` made, or the .onnx that `export` made.", show_default=False
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any free one.")]
MaxBatch = Annotated[int, typer.Option(min=1, help="Most images to score at a time.")]
MaxQueue = Annotated[int, typer.Option(min=1, help="Most images that wait (else 429).")]
MaxImages = Annotated[int, typer.Option(min=1, help="Most images in a request (422).")]
MaxBody = Annotated[float, typer.Option(min=0.001, metavar="MIB", help="Largest request, in MiB (413).")]
MaxPixels = Annotated[
    float, typer.Option(min=0.001, metavar="MP", help="Largest image, in millions of pixels; others are unreadable.")
]
Timeout = Annotated[
    float, typer.Option(min=0.1, metavar="S", help="Seconds to read a request and score it (408, 504).")
]
Connections = Annotated[int, typer.Option(min=1, help="Most open connections (503).")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads that compute. Default: one for each core.")]
Device = Annotated[str | None, typer.Option(help="'cpu', 'cuda', ... Default: that of the model.")]


@command(json=False)
def serve(
    tell: Output,
    model: ModelOrOnnx,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_batch: MaxBatch = 16,
    max_queue: MaxQueue = 256,
    max_images: MaxImages = 32,
    max_body: MaxBody = 32.0,
    max_pixels: MaxPixels = 50.0,
    timeout: Timeout = 30.0,
    connections: Connections = 512,
    threads: Threads = None,
    device: Device = None,
    weights: Weights = None,
) -> None:
    """Answer requests for scores over HTTP, and show a page on which to drop images.

    The server has neither authentication nor encryption: put a proxy in front of a server that others can reach.
    SIGTERM and Ctrl-C stop it once all accepted images are answered.
    """
    check_model(model, onnx=True)
    tell.loading()
    try:
        from skl_transformaly.serving._app import create_app
        from skl_transformaly.serving._server import listen, run
    except ModuleNotFoundError as error:
        raise Mistake(f"serve needs {error.name}: pip install 'skl-transformaly[serve]'.") from error
    from skl_transformaly.serving._limits import Limits
    from skl_transformaly.serving._scorers import open_scorer

    limits_given = {"--max-body": max_body, "--max-pixels": max_pixels, "--timeout": timeout}
    if unbounded := [name for name, value in limits_given.items() if not math.isfinite(value)]:
        raise Mistake(f"{unbounded[0]} must be a finite number: a server without that limit can be brought down.")
    body, pixels, queue = int(max_body * 2**20), int(max_pixels * 1e6), max(max_queue, max_images)
    limits = Limits(body, max_images, pixels, queue, timeout, connections, held=8 * body)
    with listen(host, port) as listener:  # before a model is loaded for nothing
        scorer = open_scorer(model, weights=weights, device=device, threads=threads)
        server = create_app(scorer, limits=limits, max_batch=max_batch)
        _prepare_decoding(limits.pixels)
        _announce(model, host, listener, tell)
        run(server, listener, limits)


def _prepare_decoding(pixels: int) -> None:
    """Let Pillow open images as large as the server's limit, and report its warnings with their scores."""
    from PIL import Image

    from skl_transformaly.serving._decoding import note_warnings

    note_warnings()
    Image.MAX_IMAGE_PIXELS = max(pixels, Image.MAX_IMAGE_PIXELS or 0)


def _announce(model: Path, host: str, listener: socket, tell: Output) -> None:
    address, port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    tell.note(f"Serving {model} at http://{shown}:{port}/ (Ctrl-C stops it).")
    if host not in _OPEN_HOSTS:
        tell.warn("anyone who can reach this machine can use the server; put a proxy with authentication in front.")
