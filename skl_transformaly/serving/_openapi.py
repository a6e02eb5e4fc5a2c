"""The OpenAPI document of the server."""

from __future__ import annotations

from typing import Any

from skl_transformaly.serving._limits import Limits
from skl_transformaly.serving._maps import MAP_SIDE

__all__ = ["describe"]

_NUMBER: dict[str, Any] = {"type": "number"}
_TEXT: dict[str, Any] = {"type": "string"}

_MAP = {
    "type": "object",
    "description": "Where the image differs from normal ones; only with ?maps=1.",
    "required": ["png", "from", "to", "peak"],
    "properties": {
        "png": {**_TEXT, "contentEncoding": "base64", "contentMediaType": "image/png",
                "description": f"RGBA, of at most {MAP_SIDE} pixels a side, to be stretched over the image."},
        "from": {**_NUMBER, "description": "Value of the faintest colour, in standard deviations of normal images."},
        "to": {**_NUMBER, "description": "Value of the strongest colour."},
        "peak": {**_NUMBER, "description": "The largest value."},
    },
}  # fmt: skip

_RESULT = {
    "type": "object",
    "required": ["name", "decision", "score", "p_value"],
    "properties": {
        "name": {**_TEXT, "description": "As sent; without one, 'image 0', ..."},
        "decision": {**_TEXT, "enum": ["normal", "anomaly", "unreadable"]},
        "score": {"type": ["number", "null"], "description": "Higher is more normal."},
        "threshold": {**_NUMBER, "description": "Scores below it are anomalies."},
        "p_value": {
            "type": ["number", "null"], "minimum": 0, "maximum": 1,
            "description": "Share of normal images that score as low; null if the model has none.",
        },
        "spaces": {
            "type": "object", "additionalProperties": _NUMBER,
            "description": "Part of each feature space in the score. Not with an ONNX file.",
        },
        "reason": {**_TEXT, "description": "In which space an anomaly is unusual, or 'normal'. Not with an ONNX file."},
        "map": {"$ref": "#/components/schemas/Map"},
        "notes": {"type": "array", "items": _TEXT, "description": "Warnings about the file."},
        "error": {**_TEXT, "description": "Why the image is unreadable."},
    },
}  # fmt: skip

_SCORES: dict[str, Any] = {
    "type": "object",
    "required": ["model", "results"],
    "properties": {
        "model": {**_TEXT, "description": "SHA-256 of the model file."},
        "results": {"type": "array", "items": {"$ref": "#/components/schemas/Result"}, "description": "In order."},
        "error": _TEXT,
    },
}

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {**_SCORES["properties"], "error": {**_TEXT, "description": "What came, and what to do."}},
}

_STATE = {
    "type": "object",
    "required": ["status"],
    "properties": {
        "status": _TEXT,
        "version": _TEXT,
        "model": {"type": "object", "additionalProperties": _TEXT},
    },
}


def describe(limits: Limits, version: str) -> dict[str, Any]:
    """Return the document; its texts name the limits."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "transformaly serve",
            "version": version,
            "description": "Finds anomalous images. Requests are not authenticated: put a proxy in front.",
        },
        "paths": {
            "/score": {"post": _describe_score(limits)},
            "/": {"get": _simple("The page for people.", "text/html", _TEXT)},
            "/healthz": {"get": _state("Whether the process works; if not, restart it.")},
            "/readyz": {"get": _state("Whether images are accepted now.")},
            "/metrics": {"get": _simple("Counters for Prometheus.", "text/plain", _TEXT)},
            "/openapi.json": {"get": _simple("This document.", "application/json", {"type": "object"})},
        },
        "components": {"schemas": {"Map": _MAP, "Result": _RESULT, "Scores": _SCORES, "Error": _ERROR}},
    }


def _describe_score(limits: Limits) -> dict[str, Any]:
    image = {"type": "object", "required": ["data"], "properties": {"name": _TEXT, "data": _TEXT}}
    refused = {
        "400": "The body is malformed.",
        "408": f"The body took longer than {limits.timeout:g} seconds.",
        "413": f"The body is larger than {limits.body} bytes.",
        "415": "The body is neither multipart/form-data nor application/json.",
        "429": f"{limits.queue} images are waiting.",
        "500": "An error of the server.",
        "503": "The server is stopping, or has no memory or no connection left.",
        "504": f"There was no score within {limits.timeout:g} seconds.",
    }
    return {
        "summary": f"Score 1 to {limits.images} images of at most {limits.pixels} pixels each.",
        "parameters": [
            {
                "name": "maps",
                "in": "query",
                "description": "Whether to send maps.",
                "schema": {**_TEXT, "enum": ["0", "1", "true", "false"]},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"image": {"type": "array", "items": {**_TEXT, "format": "binary"}}},
                    }
                },
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["images"],
                        "properties": {"images": {"type": "array", "maxItems": limits.images, "items": image}},
                    }
                },
            },
        },
        "responses": {
            "200": _content("An entry for each image, in order; some may be unreadable.", "Scores"),
            "422": _content("The request has no image, too many images, or none that can be read.", "Error"),
            **{status: _content(text, "Error") for status, text in refused.items()},
        },
    }


def _content(text: str, schema: str) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {"description": text, "content": {"application/json": {"schema": reference}}}


def _simple(summary: str, media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {"200": {"description": "Done.", "content": {media_type: {"schema": schema}}}},
    }


def _state(summary: str) -> dict[str, Any]:
    content = {"application/json": {"schema": _STATE}}
    return {
        "summary": summary,
        "responses": {
            "200": {"description": "Yes.", "content": content},
            "503": {"description": "No.", "content": content},
        },
    }
