"""The page on which people drop images: one document, which loads nothing and sends images only to its own server."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from skl_transformaly.serving._limits import Limits

__all__ = ["POLICY", "page"]


@cache
def _source(name: str) -> str:
    return files("skl_transformaly.serving").joinpath("page").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_hash(_source('page.js'))}",
        f"style-src {_hash(_source('page.css'))}",
        "img-src blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Content-Security-Policy of the page, which permits only its own script, style and address."""


def page(scorer: Any, limits: Limits) -> str:
    """Return the page of a model, as HTML, with the server's limits."""
    about = {name: text for name, text in scorer.about.items() if text}
    settings = {"maps": scorer.has_maps, "images": limits.images, "body": limits.body}
    return Template(_source("page.html")).substitute(
        style=_source("page.css"),
        script=_source("page.js"),
        title=html.escape(about.get("file", "model")),
        about="".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in about.items()),
        settings=html.escape(json.dumps(settings)),
        limits=f"Up to {limits.images} images at a time, {limits.body / 2**20:g} MiB together.",
    )
