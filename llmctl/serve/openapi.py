"""The server's own description at `/openapi.json`: every route, every field, and every status that may come."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from llmctl import __version__
from llmctl.serve.keys import POLICIES
from llmctl.serve.requests import NEUTRAL

Json = dict[str, Any]

ERROR = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "the field at fault"},
                "code": {"type": ["string", "null"], "description": "a word that programs can test"},
            },
        }
    },
}
TEXT = {"type": ["string", "array"]}
NONE = {"type": "null"}
BY_ROLE = [
    {
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant"]},
            "content": TEXT,
            "tool_calls": NONE,
            "tool_call_id": NONE,
        },
        "required": ["content"],
    },
    {
        "properties": {
            "role": {"const": "assistant"},
            "tool_calls": {"type": "array", "minItems": 1},
            "tool_call_id": NONE,
        },
        "required": ["tool_calls"],
    },
    {
        "properties": {
            "role": {"const": "tool"},
            "content": TEXT,
            "tool_calls": NONE,
            "tool_call_id": {"type": "string"},
        },
        "required": ["content", "tool_call_id"],
    },
]
ALWAYS = {
    "400": "no HTTP, or no request that this route takes",
    "405": "the route has no such method",
    "408": "the body did not come in time",
    "413": "the body is too large",
    "431": "the headers are too large",
    "500": "a fault of the server",
}
WITH_KEY = {"401": "a valid key is needed"}
WITH_BODY = {"404": "there is no such model"}
WITH_ENGINE = {"429": "too much is asked for at one time, or in a minute; Retry-After says when to come again"}
ENDING = {"503": "the server ends; Retry-After says when to come again"}
GENERATING = ("/v1/completions", "/v1/chat/completions")
STATE_ROUTES = ("/health", "/ready")


def document(app: FastAPI, model_name: str, *, keys: bool) -> Json:
    """The description of `app` in OpenAPI 3.1.

    Args:
        app: the application with all of its routes.
        model_name: the only one that requests may name.
        keys: whether a key is asked for.
    """
    described: Json = get_openapi(title="llmctl", version=__version__, routes=app.routes)
    schemas = described["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for schema in schemas.values():
        fields = schema.get("properties", {})
        if "model" in fields:
            optional = "model" not in schema.get("required", ())
            fields["model"]["enum"] = [model_name, *([None] if optional else [])]
        for name in fields.keys() & NEUTRAL.keys():
            fields[name] |= {"enum": list(NEUTRAL[name]), "description": "not supported: must change nothing"}
    schemas["Error"] = ERROR
    schemas["Message"]["anyOf"] = BY_ROLE  # what its validators ask for
    for path, operations in described["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's own, which errors.install turns into 400
            operation["responses"] |= _failures(path, has_body="requestBody" in operation)
            if keys and POLICIES[path] == "key":
                operation["security"] = [{"key": []}]
    if keys:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return described


def _failures(path: str, *, has_body: bool) -> Json:
    """The error responses of a route."""
    told = dict(ALWAYS)
    if POLICIES[path] == "key":
        told |= WITH_KEY
    if has_body:
        told |= WITH_BODY
    if path in GENERATING:
        told |= WITH_ENGINE | ENDING
    responses: Json = {status: _error(text) for status, text in told.items()}
    if path in STATE_ROUTES:
        state = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
        responses["503"] = {"description": "not now", "content": {"application/json": {"schema": state}}}
    return responses


def _error(text: str) -> Json:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": text, "content": content}
