from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmctl.config.errors import UpstreamError
from llmctl.pipeline.receipts import begin, end_failed, end_ok, receive
from llmctl.store.artifact import Artifact
from llmctl.store.store import Store
from tests.store.test_store import commit


def lines(*receipts: object) -> list[bytes]:
    return [(json.dumps(receipt) + "\n").encode() for receipt in receipts]


@pytest.fixture
def artifact(store: Store) -> Artifact:
    return commit(store, "web", "01A")


@pytest.fixture
def first(store: Store) -> object:
    return begin("01A", "clean", "documents", store)


def test_a_whole_stream_delivers(artifact: Artifact, first: object) -> None:
    got = receive(lines(first, {"t": "tick", "rows": 1}, end_ok(artifact, cached=False)))
    assert (got.ref, got.digest) == ("web@v1", artifact.digest)


def test_every_broken_stream_is_refused(artifact: Artifact, first: object, tmp_path: Path) -> None:
    good = end_ok(artifact, cached=False)
    cases = {
        "nothing came": [],
        "stopped before": lines(first, {"t": "tick"}),
        "failed: no disk": lines(first, end_failed(3, "no disk")),
        "it stopped": lines(first, end_failed(4, "it stopped")),
        "not a whole receipt": [*lines(first), lines(good)[0][:-20]],
        "not a whole receipt ": [*lines(first), lines(good)[0][:-1]],
        "'plain text'": [b"plain text\n"],
        "does not start": lines(good),
        "this protocol": lines({"t": "begin", "proto": "llmctl.receipt/9"}),
        "names no manifest": lines(first, {"t": "end", "ok": True}),
        "not what the pipe promised": lines(first, {**good, "manifest_sha256": "0" * 64}),
        "not what the pipe promised ": lines(first, {**good, "manifest": str(tmp_path / "none")}),
        "'[1]'": [b"[1]\n"],
        "more than one result": lines(first, end_failed(3, "no disk"), good),
        "more than one result ": lines(first, good, good),
        "went on after it": lines(first, good, {"t": "tick"}),
        "went on after it ": lines(first, first, good),
    }
    for message, stream in cases.items():
        with pytest.raises(UpstreamError) as raised:
            receive(stream)
        assert message.strip() in raised.value.what, message
        assert raised.value.exit_code == 4
