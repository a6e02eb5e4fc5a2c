"""``transformaly serve``: a model behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skl_transformaly.cli._app import Debug, Mistake, Quiet, Weights, app, command, say
from skl_transformaly.cli._inputs import check_model

__all__ = ["serve"]

_OPEN_HOSTS = ("127.0.0.1", "::1", "localhost")


@app.command()
@command
def serve(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="A model file that `fit` made, or the .onnx that `export` made.", show_default=False
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any that is free.")] = 8000,
    max_batch: Annotated[int, typer.Option(min=1, help="Most images that are scored at a time.")] = 16,
    max_wait: Annotated[
        float, typer.Option(min=0, metavar="MS", help="Milliseconds that a batch waits for images being decoded.")
    ] = 5.0,
    max_queue: Annotated[int, typer.Option(min=1, help="Most images that wait; more is refused (429).")] = 256,
    max_images: Annotated[int, typer.Option(min=1, help="Most images in a request (422).")] = 32,
    max_body: Annotated[float, typer.Option(min=0.001, metavar="MIB", help="Largest request, in MiB (413).")] = 32.0,
    max_pixels: Annotated[
        float, typer.Option(min=0.001, metavar="MP", help="Largest image, in millions of pixels (422).")
    ] = 50.0,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="Seconds to read a request and score it (408, 504).")
    ] = 30.0,
    connections: Annotated[int, typer.Option(min=1, help="Most open connections (503).")] = 512,
    decoders: Annotated[int, typer.Option(min=1, help="Threads that decode images.")] = 2,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that compute; without it, one for each core.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="'cpu', 'cuda', ...; without it, the model's.")] = None,
    weights: Weights = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Answer requests for scores over HTTP, and show a page on which to drop images.

    The server has neither authentication nor encryption: put a proxy in front of a server that others can reach.
    SIGTERM and Ctrl-C stop it once all that was accepted is answered.
    """
    check_model(model)
    try:
        from skl_transformaly.serving._app import create_app
        from skl_transformaly.serving._server import listen, run
    except ModuleNotFoundError as error:
        raise Mistake(f"serve needs {error.name}: pip install 'skl-transformaly[serve]'.") from error
    from PIL import Image

    from skl_transformaly.serving._decoding import note_warnings
    from skl_transformaly.serving._limits import Limits
    from skl_transformaly.serving._scorers import open_scorer

    body = int(max_body * 2**20)
    limits = Limits(
        body=body,
        images=max_images,
        pixels=int(max_pixels * 1e6),
        queue=max(max_queue, max_images),
        timeout=timeout,
        connections=connections,
        held=8 * body,
    )
    listener = listen(host, port)  # before a model is loaded for nothing
    with listener:
        scorer = open_scorer(model, weights=weights, device=device, threads=threads)
        note_warnings()
        Image.MAX_IMAGE_PIXELS = max(limits.pixels, Image.MAX_IMAGE_PIXELS or 0)
        server = create_app(scorer, limits=limits, max_batch=max_batch, max_wait=max_wait / 1000, decoders=decoders)
        address, bound = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        if not quiet:
            say(f"Serving {model} at http://{shown}:{bound}/ (Ctrl-C stops it).")
        if host not in _OPEN_HOSTS and not quiet:
            say("warning: whoever can reach this machine can use it; put a proxy with authentication in front.")
        run(server, listener, limits)
