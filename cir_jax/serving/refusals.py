# SPDX-License-Identifier: Apache-2.0
"""What a client is told when it does not get what it asked for: {"error": {...}}, OpenAI's form."""

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from cir_jax import progress
from cir_jax.errors import UserError

_LONGEST = 1_000  # characters of a message: it may quote what the client sent


class Problem(BaseModel):
    """What went wrong."""

    message: str = Field(
        description="What was wrong, with the value, the limit and what to do.",
        examples=["k is 1000000000, and at most 1000 results are given; ask for fewer"],
    )
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(
        default=None, description="Which part of the request.", examples=["k"]
    )
    code: str | None = Field(
        default=None, description="A word for programs.", examples=["too_large"]
    )


class ErrorBody(BaseModel):
    """Every answer with a status of 400 and above."""

    error: Problem


class Refusal(HTTPException):
    """A request that is not answered.

    It is an HTTPException, because that is the one kind of error that the framework lets pass from
    the middle of a body.

    Args:
      status: of HTTP, 4xx, or 503.
      message: what was wrong, the limit and the remedy.
      param: the part of the request that was wrong.
      code: a word for programs.
      headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, message, dict(headers or {}))
        self.param, self.code = param, code

    def response(self) -> Response:
        """The answer."""
        return _json(self.status_code, self.detail, self.param, self.code, self.headers)


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
}
_MEANINGS = {
    400: "The request cannot be used; the message says why.",
    401: "The server wants a token: `Authorization: Bearer TOKEN`.",
    403: "The host or the origin of the request is not this server's.",
    404: "There is no such thing here.",
    405: "The address does not know this method.",
    409: "It would break a rule that the message names.",
    413: "The body or an image in it is too large.",
    415: "The body is of another type than the address takes.",
    429: "This client asks too often; `Retry-After` says when to come again.",
    503: "The server has too much to do, or starts; `Retry-After` says when to come again.",
}


def declared(*more: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: what any may answer, and `more`."""
    statuses = sorted({400, 401, 403, 413, *more})
    return {
        status: {"model": ErrorBody, "description": _MEANINGS[status]}
        | ({"headers": _RETRY} if status in (429, 503) else {})
        for status in statuses
    }


_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}


def server_error() -> Response:
    """The answer to a defect of ours: what happened is in the server's log."""
    return _json(500, "an error of the server; its log says which", None, "internal", None)


def of_user_error(request: Request, error: Exception) -> Response:
    """What the library refuses, the client has asked for."""
    assert isinstance(error, UserError)
    return _json(400, str(error), getattr(error, "param", None), None, None)


def of_http(request: Request, error: Exception) -> Response:
    """A `Refusal`, or what the framework refuses: an unknown address or method."""
    if isinstance(error, Refusal):
        return error.response()
    assert isinstance(error, HTTPException)
    words = {404: "there is nothing at this address; /openapi.json lists what there is"}
    message = words.get(error.status_code, str(error.detail))
    return _json(error.status_code, message, None, None, error.headers)


def of_validation(request: Request, error: Exception) -> Response:
    """A body or a parameter of another form than the description says."""
    assert isinstance(error, RequestValidationError)
    # Of a value that may be of several forms each form has its error; the one that came furthest
    # is of the form that was meant.
    first = max(error.errors(), key=lambda e: (not e["type"].endswith("_type"), len(e["loc"])))
    if first["type"] == "json_invalid":
        message = f"the body is no JSON ({first.get('ctx', {}).get('error', 'it is damaged')})"
        return _json(400, message, None, "json_invalid", None)
    param = _place(first, error.body)
    message = str(first["msg"]).removeprefix("Value error, ")
    return _json(400, f"{param}: {message}" if param else message, param, first["type"], None)


def _place(problem: Mapping[str, Any], body: Any) -> str | None:
    """Where in the request it is, "images.0.id", without the names of the forms that were tried."""
    kind, *parts = problem["loc"]
    if kind != "body":
        return ".".join(map(str, parts)) or None
    found, value = [], body
    for part in parts:
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        elif not (part is parts[-1] and problem["type"] == "missing"):
            continue
        found.append(str(part))
    return ".".join(found) or None


def _json(
    status: int,
    message: str,
    param: str | None,
    code: str | None,
    headers: Mapping[str, str] | None,
) -> Response:
    problem = {
        "message": progress.shown(message)[:_LONGEST],
        "type": _TYPES.get(status, "invalid_request_error"),
        "param": None if param is None else progress.shown(param)[:_LONGEST],
        "code": code,
    }
    return JSONResponse({"error": problem}, status, headers=dict(headers or {}))
