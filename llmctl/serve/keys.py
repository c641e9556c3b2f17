"""Who may ask: keys from the environment or from a file of hashes, and which routes need one."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from llmctl.config.errors import InputError, UsageError
from llmctl.config.serve import ServeConfig
from llmctl.serve.errors import ApiError
from llmctl.store.files import explained

Policy = Literal["open", "key"]
POLICIES: Final[dict[str, Policy]] = {
    "/": "key",
    "/health": "open",
    "/ready": "open",
    "/version": "key",
    "/metrics": "key",
    "/openapi.json": "key",
    "/tokenize": "key",
    "/detokenize": "key",
    "/v1/models": "key",
    "/v1/completions": "key",
    "/v1/chat/completions": "key",
}
"""What each route asks for once keys are set. What is not listed, a path that does not exist, asks for a key too."""

PAGE = "/"  # a browser asks a person for the key itself
LINE = re.compile(r"([A-Za-z0-9._-]{1,64})\s+([0-9a-f]{64})")
ENVIRONMENT_HOLDER = "environment"


@dataclass(frozen=True)
class Keys:
    """SHA-256 of every key, by the name of who holds it."""

    digests: Mapping[str, bytes]

    def holder(self, key: bytes) -> str | None:
        """Who holds this key. All hashes are compared, each in constant time, so that the time tells nothing."""
        given, found = digest(key), None
        for name, known in self.digests.items():
            if hmac.compare_digest(given, known):
                found = name
        return found


def read_keys(config: ServeConfig) -> Keys | None:
    """The keys that the configuration names; None where it names none, and nobody is asked.

    Raises:
        UsageError: `api_key_env` names a variable that is not set.
        InputError: the file cannot be read, holds no key, or a line is wrong.
    """
    digests: dict[str, bytes] = {}
    if config.api_key_env:
        key = os.environ.get(config.api_key_env, "")
        if not key:
            raise UsageError(
                f"the environment variable {config.api_key_env} is empty or not set",
                hint="put the key in it, or clear api_key_env",
            )
        digests[ENVIRONMENT_HOLDER] = digest(key.encode())
    if config.api_key_file:
        digests |= _read_file(Path(config.api_key_file))
    return Keys(digests) if digests else None


def _read_file(path: Path) -> dict[str, bytes]:
    with explained(str(path)):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    digests: dict[str, bytes] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        parts = LINE.fullmatch(text)
        if parts is None or parts[1] in digests or parts[1] == ENVIRONMENT_HOLDER:
            raise InputError(
                f"{path} line {number}: not a new name and the SHA-256 of a key in hexadecimal",
                hint="NAME HASH, where HASH is the first word that `printf %s KEY | sha256sum` prints",
            )
        digests[parts[1]] = bytes.fromhex(parts[2])
    if not digests:
        raise InputError(f"{path} holds no key", hint="one a line: NAME HASH")
    return digests


def digest(key: bytes) -> bytes:
    """SHA-256, so that keys of all lengths are compared alike, and a file of them gives none away."""
    return hashlib.sha256(key).digest()


def require_policies(routes: Iterable[str]) -> None:
    """Refuse to start with a route that nobody has decided upon."""
    undecided = sorted(set(routes) - POLICIES.keys())
    if undecided:
        raise AssertionError(f"routes without a policy in llmctl.serve.keys.POLICIES: {', '.join(undecided)}")


class KeyMiddleware:
    """Refuses with 401 what does not carry a key, as `Authorization: Bearer KEY` or as the password of `Basic`.

    `scope["state"]["client"]` names who asks: the holder of the key, or the address where no key is asked for.
    """

    def __init__(self, app: ASGIApp, keys: Keys | None) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass."""
        if scope["type"] == "http":
            address = scope["client"][0] if scope.get("client") else ""
            holder = address if self.keys is None else self.keys.holder(_given_key(scope))
            if holder is None and POLICIES.get(scope["path"], "key") == "key":
                await _refusal(scope["path"]).response()(scope, receive, send)
                return
            scope.setdefault("state", {})["client"] = holder or address
        await self.app(scope, receive, send)


def _given_key(scope: Scope) -> bytes:
    """The key in the one Authorization header; b"" where there is none, or several."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    if scheme.lower() == b"bearer":
        return bytes(key.strip())
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(key.strip(), validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""


def _refusal(path: str) -> ApiError:
    return ApiError(
        401,
        "a valid key is needed: send the header Authorization: Bearer <key>",
        code="invalid_api_key",
        headers={"WWW-Authenticate": 'Basic realm="llmctl, the key as password"' if path == PAGE else "Bearer"},
    )
