"""Receipts: what flows through a pipe instead of bytes (design §4).

One JSON object per line: `begin`, `tick`…, `end`. A downstream stage publishes nothing unless it read
`end` with `ok: true` and found the manifest that it names, unchanged. `sh` has no pipefail, so a failure
upstream must travel in the stream: a missing `end`, a torn line or an empty stream is one too.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmctl.config.errors import UpstreamError
from llmctl.store.artifact import Artifact
from llmctl.store.files import sha256_file
from llmctl.store.layout import STORE_FILE
from llmctl.store.manifest import MANIFEST_FILE
from llmctl.store.refs import Pointer
from llmctl.store.store import Store

PROTOCOL = "llmctl.receipt/1"
MAX_LINE_BYTES = 1 << 20


def begin(run_id: str, command: str, kind: str, store: Store) -> dict[str, Any]:
    """The first line, sent once the configuration is valid and before any work."""
    return {"t": "begin", "proto": PROTOCOL, "run": run_id, "command": command, "kind": kind, "store": str(store.root)}


def end_ok(artifact: Artifact, *, cached: bool) -> dict[str, Any]:
    """The last line of a success."""
    manifest = artifact.path / MANIFEST_FILE
    return {
        "t": "end",
        "ok": True,
        "ref": artifact.ref,
        "digest": artifact.digest,
        "manifest": str(manifest),
        "manifest_sha256": sha256_file(manifest),
        "cached": cached,
        "totals": artifact.manifest.totals,
    }


def end_failed(code: int, error: str) -> dict[str, Any]:
    """The last line of a handled failure."""
    return {"t": "end", "ok": False, "code": code, "error": error}


def receive(lines: Iterable[bytes]) -> Artifact:
    """Read a receipt stream to its end and return the artifact that it delivers.

    Raises:
        UpstreamError: where the stream is empty, torn, cut short or reports a failure.
    """
    first: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    for line in lines:
        receipt = _parse(line)
        if first is None:
            first = _check_begin(receipt)
        elif last is not None or receipt["t"] == "begin":
            raise UpstreamError(
                f"llmctl {first.get('command')} sent more than one result, or went on after it",
                hint="pipe one llmctl command into the next",
            )
        if receipt["t"] == "end":
            last = receipt
    if first is None:
        raise UpstreamError("nothing came through the pipe", hint="see the message of the command before this one")
    if last is None:
        raise UpstreamError(
            f"llmctl {first.get('command')} stopped before it finished",
            hint="run the line again; finished stages are cached",
        )
    if last.get("code") == UpstreamError.exit_code:  # it only passes on what happened further up
        raise UpstreamError(str(last.get("error")))
    if last.get("ok") is not True:
        raise UpstreamError(
            f"llmctl {first.get('command')} failed: {last.get('error')}",
            hint="mend that first, then run the line again; finished stages are cached",
        )
    return _open(last)


def _parse(line: bytes) -> dict[str, Any]:
    receipt = None
    if line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
        with contextlib.suppress(ValueError):
            receipt = json.loads(line)
    if isinstance(receipt, dict) and receipt.get("t") in ("begin", "tick", "end"):
        return receipt
    shown = line[:60].decode(errors="replace").strip()
    raise UpstreamError(
        f"the pipe carries {shown!r}, not a whole receipt",
        hint="pipe llmctl commands only; data comes in through llmctl collect",
    )


def _check_begin(receipt: dict[str, Any]) -> dict[str, Any]:
    if receipt["t"] != "begin" or receipt.get("proto") != PROTOCOL:
        raise UpstreamError(
            "the pipe does not start with a receipt of this protocol",
            hint="use one version of llmctl in the whole line",
        )
    return receipt


def _open(end: dict[str, Any]) -> Artifact:
    """The artifact of an `end` receipt, checked against the manifest hash that it carries."""
    try:
        manifest = Path(end["manifest"])
        ref, digest, promised = str(end["ref"]), str(end["digest"]), str(end["manifest_sha256"])
    except (KeyError, TypeError):
        raise UpstreamError(
            "the last receipt names no manifest", hint="use one version of llmctl in the whole line"
        ) from None
    root = next((p for p in manifest.parents if (p / STORE_FILE).is_file()), None)
    if root is None or not manifest.is_file() or sha256_file(manifest) != promised:
        raise UpstreamError(f"the manifest of {ref} is not what the pipe promised", hint="run the line again")
    return Store(root).load(Pointer(manifest.parent.relative_to(root).as_posix(), digest, promised), ref)
