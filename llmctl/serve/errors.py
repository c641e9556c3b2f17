"""The one error form of every route: OpenAI's `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import difflib
import http
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from llmctl.config.errors import LlmctlError

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
LONGEST_SHOWN = 80


class ApiError(Exception):
    """A refusal that the client is told about.

    Args:
        status: HTTP status code.
        message: what is wrong and how to mend it.
        kind: OpenAI's `type`, such as `invalid_request_error`.
        param: the request field at fault.
        code: a stable word that programs can test, such as `model_not_found`.
        headers: extra response headers, such as `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON value sent: all four keys are always there, `param` and `code` may be null."""
        param = None if self.param is None else _sendable(self.param)
        return {"error": {"message": _sendable(self.message), "type": self.kind, "param": param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The HTTP response that carries it."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def _sendable(text: str) -> str:
    """`text` with the lone surrogates, which a client may have put into a field's name, replaced."""
    return text.encode("utf-8", "replace").decode()


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400 about one request field."""
    return ApiError(400, message, param=param, code=code)


def internal_error() -> ApiError:
    """A 500 that says nothing of our insides; the traceback is in the server's log."""
    return ApiError(
        500, "the server failed on this request; its log says why", kind=SERVER_ERROR, code="internal_error"
    )


def from_exception(error: BaseException) -> ApiError:
    """What a client is told of `error`: handled errors keep their words, bugs become a bare 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, LlmctlError):
        return bad_request(error.one_line)
    return internal_error()


def field_path(location: Sequence[str | int]) -> str | None:
    """`("body", "messages", 0, "content")` as `messages[0].content`; None for the body as a whole."""
    path = ""
    for part in location[1:] if location and location[0] == "body" else location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path or None


def from_validation(faults: Sequence[Mapping[str, Any]], known: Sequence[str]) -> ApiError:
    """The first fault of a request body as a 400 that names its field.

    Args:
        faults: pydantic's error list.
        known: field names that the route accepts, for a did-you-mean.
    """
    fault = faults[0]
    kind, location = fault["type"], fault["loc"]
    if kind == "json_invalid":
        reason = fault.get("ctx", {}).get("error", "it cannot be parsed")
        return bad_request(f"the body is not valid JSON: {reason} (at character {location[-1]})", code="invalid_json")
    param = field_path(location)
    if param is None:
        return bad_request("the body must be a JSON object sent with Content-Type: application/json")
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else "leave it out"
        return bad_request(f"unknown field {param[:LONGEST_SHOWN]}; {hint}", param[:LONGEST_SHOWN], "unknown_parameter")
    if kind == "missing":
        return bad_request(f"{param} is required", param, "missing_required_parameter")
    message = f"{param}: {fault['msg'].removeprefix('Value error, ')}"
    given = fault.get("input")
    if isinstance(given, bool | int | float) or (isinstance(given, str) and len(given) <= LONGEST_SHOWN):
        message += f", got {given!r}"
    return bad_request(message, param, "invalid_value")


def install(app: FastAPI, known: Sequence[str]) -> None:
    """Make `app` answer every failure with the error object."""

    async def on_api_error(_: Request, error: Exception) -> JSONResponse:
        return from_exception(error).response()

    async def on_validation(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, RequestValidationError):
            raise error
        return from_validation(error.errors(), known).response()

    async def on_http(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, HTTPException):
            raise error
        status = 400 if error.status_code == 422 else error.status_code
        message = str(error.detail) or http.HTTPStatus(status).phrase
        headers = dict(error.headers or {})
        return ApiError(status, message, code=_HTTP_CODES.get(status), headers=headers).response()

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(LlmctlError, on_api_error)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_api_error)


_HTTP_CODES = {404: "unknown_url", 405: "method_not_allowed"}
