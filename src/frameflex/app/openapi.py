"""The description of the service that ``/openapi.json`` gives."""

from __future__ import annotations

from typing import Any

from frameflex import __version__
from frameflex.app.answers import UploadLimits
from frameflex.app.uploads import bytes_text
from frameflex.checkpoint import Checkpoint
from frameflex.data.transforms import VIEWS

_ERRORS = {
    "400": "an option is out of range, or the body is empty",
    "401": "the token is missing or wrong",
    "403": "the request comes from the page of another site",
    "413": "the file is too large",
    "415": "the body is a form; expected the bytes of the file alone",
    "421": "the Host is none of this machine's names, and the service has no token",
    "422": "the video can't be decoded, or is larger or longer than the limits",
    "503": "too many requests at once; come again",
    "504": "not done in time",
}


def openapi(checkpoint: Checkpoint, limits: UploadLimits, *, has_token: bool) -> dict[str, Any]:
    """OpenAPI 3.1 of a service with this checkpoint."""
    seconds = "" if limits.max_video_seconds is None else f", {limits.max_video_seconds:g} s"
    allowed = f"at most {bytes_text(limits.max_bytes)}{seconds}, {limits.max_pixels} pixels a frame"
    predict: dict[str, Any] = {
        "summary": "Recognise what happens in a video",
        "parameters": [
            _option(
                "frames",
                "T, frames to look at",
                {"type": "integer", "minimum": 1, "maximum": limits.max_frames},
                checkpoint.num_frames,
            ),
            _option("top", "answers", {"type": "integer", "minimum": 1, "maximum": 1000}, 5),
            _option("views", "temporal views x crops", {"type": "string", "enum": list(VIEWS)}, "1x1"),
        ],
        "requestBody": {
            "required": True,
            "description": f"the bytes of a video file; {allowed}",
            "content": {"application/octet-stream": {}, "video/*": {}},
        },
        "responses": {
            "200": _answer("the answers, best first", {"$ref": "#/components/schemas/Answer"}),
            **{
                status: _answer(text, {"$ref": "#/components/schemas/Error"})
                for status, text in _ERRORS.items()
            },
        },
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "frameflex serve", "version": __version__},
        "paths": {
            "/predict": {"post": predict},
            "/healthz": {"get": _get("Whether the service runs", {"type": "object"}) | {"security": []}},
            "/metrics": {
                "get": {
                    "summary": "Counts and times, for Prometheus",
                    "responses": {"200": {"description": "text format 0.0.4", "content": {"text/plain": {}}}},
                }
            },
            "/openapi.json": {"get": _get("This description", {"type": "object"})},
        },
        "components": {"schemas": _schemas(checkpoint)},
    }
    if has_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _schemas(checkpoint: Checkpoint) -> dict[str, Any]:
    prediction = {
        "type": "object",
        "required": ["label", "index", "probability"],
        "properties": {
            "label": {"type": "string"},
            "index": {"type": "integer", "minimum": 0, "maximum": len(checkpoint.class_names) - 1},
            "probability": {"type": "number", "minimum": 0, "maximum": 1},
        },
    }
    answer = {
        "type": "object",
        "required": ["predictions", "num_frames"],
        "properties": {
            "predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}},
            "num_frames": {"type": "integer"},
        },
    }
    error = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    return {"Prediction": prediction, "Answer": answer, "Error": error}


def _option(name: str, text: str, schema: dict[str, Any], default: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": {**schema, "default": default}}


def _answer(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _get(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": _answer(summary, schema)}}
