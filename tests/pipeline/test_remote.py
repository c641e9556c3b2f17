"""Inputs by URL, from a small server that speaks as much of the hub's protocol as reading needs."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmctl.config.errors import InputError, UsageError
from llmctl.data.tables import read_rows
from llmctl.pipeline.execute import resolve_input, resolve_inputs
from llmctl.pipeline.remote import is_remote
from llmctl.pipeline.stages import stage_named
from llmctl.store.artifact import FileInput
from llmctl.store.store import Store
from tests.data.fetch import servers
from tests.data.fetch.test_object_stores import CREDENTIALS, Bucket

PAIR = {"prompt": "one", "chosen": "two", "rejected": "three"}
JUDGED = {"prompt": [{"role": "user", "content": "one"}], "completion": "two", "label": False}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The data set `me/repo` with a Parquet file of pairs and a file of judged answers."""
    pytest.importorskip("huggingface_hub")
    for variable in CREDENTIALS:
        monkeypatch.delenv(variable, raising=False)
    bucket = Bucket()
    bucket.files.clear()
    pq.write_table(pa.Table.from_pylist([PAIR] * 3), tmp_path / "pairs.parquet")
    bucket.files["data/pairs.parquet"] = (tmp_path / "pairs.parquet").read_bytes()
    bucket.files["data/judged.jsonl"] = (json.dumps(JUDGED) + "\n").encode()
    bucket.files["README.md"] = b"# pairs"
    with servers.site() as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url)
        monkeypatch.setenv("LLMCTL_ALLOW_PRIVATE", "1")
        site.rest = bucket.hf
        yield bucket


def given(ref: str, store: Store) -> FileInput:
    found = resolve_input(ref, "preferences", stage_named("dpo"), store)
    assert isinstance(found, FileInput)
    return found


def test_pairs_of_the_hub_are_read_as_a_file_is(hub: Bucket, store: Store, tmp_path: Path) -> None:
    found = given("hf://datasets/me/repo/data/pairs.parquet", store)
    assert found == FileInput.of(found.path, "preferences")
    assert found.digest == FileInput.of(tmp_path / "pairs.parquet", "preferences").digest
    rows = list(read_rows(found))
    assert [row["chosen"][0]["content"] for row in rows] == ["two"] * 3
    assert given("hf://datasets/me/repo@main/data/pairs.parquet", store).digest == found.digest
    (row,) = read_rows(given("hf://datasets/me/repo/data/judged.jsonl", store))
    assert (row["chosen"], row["rejected"][0]["content"]) == ([], "two")


def test_a_folder_names_its_files_and_what_is_missing_is_named(hub: Bucket, store: Store) -> None:
    with pytest.raises(UsageError, match=r"stands for 2 files \(judged.jsonl, pairs.parquet\)"):
        given("hf://datasets/me/repo/data", store)
    with pytest.raises(InputError, match="gone.parquet"):
        given("hf://datasets/me/repo/data/gone.parquet", store)
    with pytest.raises(InputError, match="ftp:// is not fetched"):
        given("ftp://example.org/a.jsonl", store)


def test_private_addresses_are_refused_unless_allowed(
    hub: Bucket, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCTL_ALLOW_PRIVATE", "0")
    with pytest.raises(InputError, match="private|public|this machine"):
        given("hf://datasets/me/repo/data/pairs.parquet", store)
    assert hub.reads == []


def test_checkpoints_have_no_url(store: Store) -> None:
    assert not is_remote("C:/a")
    assert not is_remote("name@v3")
    assert not is_remote("a/b.jsonl")
    with pytest.raises(InputError):
        resolve_inputs(stage_named("dpo"), {"input": "hf://me/small"}, store, later=("preferences",))
