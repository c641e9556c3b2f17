"""Encode, pack and read back: the whole way from text to batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmctl.config.errors import ConfigError, InputError, IntegrityError
from llmctl.config.load import build
from llmctl.config.tokens import PackConfig, TokenizeConfig
from llmctl.data.split import is_heldout
from llmctl.pipeline.execute import Outcome
from llmctl.store.artifact import Artifact
from llmctl.store.store import Store
from llmctl.tokens.batch import Batch
from llmctl.tokens.encode import id_dtype
from llmctl.tokens.order import rows_of_step
from llmctl.tokens.reading import Reading, pieces_of_step
from llmctl.tokens.rows import Rows
from llmctl.tokens.tokenizer import Tokenizer

RunStage = Callable[..., Outcome]
SEQ_LEN = 128


def tokenize_config(**fields: Any) -> TokenizeConfig:
    return TokenizeConfig.model_validate({"train": {"vocab_size": 700}, **fields})


@pytest.fixture
def tokens(run_stage: RunStage, write_documents: Any, documents: list[str]) -> Artifact:
    config = tokenize_config(shard_tokens=10_000)
    return run_stage("tokenize", config, {"input": write_documents(documents)}).artifact


@pytest.fixture
def rows(run_stage: RunStage, tokens: Artifact) -> Artifact:
    config = PackConfig(seq_len=SEQ_LEN, heldout_fraction=0.1)
    return run_stage("pack", config, {"input": tokens}).artifact


def encoded_documents(artifact: Artifact) -> dict[str, np.ndarray]:
    """Token ids by document id, read from the shards."""
    found = {}
    for path in artifact.files(suffix=".parquet"):
        shard = np.fromfile(path.with_name(path.name.replace("documents", "tokens").replace("parquet", "bin")), "u2")
        for row in pq.read_table(path).to_pylist():
            found[row["id"]] = shard[row["offset"] : row["offset"] + row["tokens"]]
    return found


def test_every_document_is_encoded_between_bos_and_eos(tokens: Artifact, documents: list[str], store: Store) -> None:
    tokenizer = Tokenizer.open(store.find(tokens.manifest.semantic["tokenizer"]).data)
    found = encoded_documents(tokens)
    assert list(found) == [f"docs/{number}" for number in range(len(documents))]
    for ids, text in zip(found.values(), documents, strict=True):
        assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
        assert tokenizer.decode(ids.tolist()) == text
    totals = tokens.manifest.totals
    assert totals["documents"] == len(documents)
    assert totals["tokens"] == sum(ids.size for ids in found.values())
    assert totals["bytes"] == sum(len(text.encode()) for text in documents)
    assert tokens.manifest.semantic["dtype"] == "uint16"
    assert tokens.manifest.inputs["tokenizer"].digest == tokens.manifest.semantic["tokenizer"]


def test_shards_close_at_the_size_asked_for(tokens: Artifact) -> None:
    sizes = [path.stat().st_size // 2 for path in tokens.files(suffix=".bin")]
    assert len(sizes) > 2
    assert all(size >= 10_000 for size in sizes[:-1])
    for path in tokens.files(suffix=".parquet"):
        table = pq.read_table(path)
        lengths = table.column("tokens").to_numpy()
        assert (table.column("offset").to_numpy() == np.cumsum(lengths) - lengths).all()
        assert lengths[:-1].sum() < 10_000


def test_workers_and_a_given_tokenizer_change_nothing(
    run_stage: RunStage, write_documents: Any, documents: list[str], tokens: Artifact, store: Store
) -> None:
    given = {"input": write_documents(documents), "tokenizer": store.find(tokens.manifest.semantic["tokenizer"])}
    again = run_stage("tokenize", tokenize_config(shard_tokens=10_000, workers=1), given, force=True).artifact
    assert again.digest == tokens.digest


def test_ids_beyond_sixteen_bits_get_a_wider_type() -> None:
    assert id_dtype(65_536) == np.uint16
    assert id_dtype(65_537) == np.uint32


def test_an_empty_corpus_is_an_input_error(
    run_stage: RunStage, write_documents: Any, tokens: Artifact, store: Store
) -> None:
    with pytest.raises(InputError, match="holds no text"):
        run_stage("tokenize", tokenize_config(), {"input": write_documents([], "none")})
    tokenizer = store.find(tokens.manifest.semantic["tokenizer"])
    with pytest.raises(InputError, match="holds no documents"):
        run_stage("tokenize", tokenize_config(), {"input": write_documents([], "none"), "tokenizer": tokenizer})


def test_no_token_is_lost_and_held_out_documents_stay_apart(rows: Artifact, tokens: Artifact) -> None:
    found = encoded_documents(tokens)
    seen = {}
    for split in ("train", "heldout"):
        names = pq.read_table(rows.file(f"{split}.documents.parquet")).column("id").to_pylist()
        assert names == [name for name in found if is_heldout(name, 0.1) == (split == "heldout")]
        opened = Rows.open(rows, split)
        pieces: dict[str, list[tuple[int, np.ndarray]]] = {}
        for row in range(opened.count):
            at = 0
            ids = opened.batch(np.array([row])).tokens[0]
            for document, start, length in opened.slices_of(row).tolist():
                pieces.setdefault(names[document], []).append((start, ids[at : at + length]))
                at += length
            assert (ids[at:] == opened.pad_id).all()
        seen |= {
            name: np.concatenate([ids for _, ids in sorted(some, key=lambda s: s[0])]) for name, some in pieces.items()
        }
    assert sorted(seen) == sorted(found)
    assert all((seen[name] == ids).all() for name, ids in found.items())


def test_totals_and_facts(rows: Artifact, tokens: Artifact) -> None:
    totals, semantic = rows.manifest.totals, rows.manifest.semantic
    assert totals["tokens"] == tokens.manifest.totals["tokens"] == totals["train.tokens"] + totals["heldout.tokens"]
    assert totals["documents"] == totals["train.documents"] + totals["heldout.documents"]
    assert totals["rows"] == sum(semantic["rows"].values()) == totals["train.rows"] + totals["heldout.rows"]
    assert totals["train.padding"] < 0.01
    assert semantic["seq_len"] == SEQ_LEN
    assert semantic["heldout_fraction"] == 0.1
    assert semantic["tokenizer"] == tokens.manifest.semantic["tokenizer"]
    for split in ("train", "heldout"):
        opened = Rows.open(rows, split)
        assert opened.batch(np.arange(opened.count)).targets == semantic["targets"][split]


def reference(opened: Rows, row: int) -> tuple[list[int], list[int], list[int]]:
    """Positions, documents and labels of a row, place by place."""
    ids = opened.batch(np.array([row])).tokens[0].tolist()
    positions, documents, labels = [], [], []
    for number, (_, _, length) in enumerate(opened.slices_of(row).tolist()):
        for place in range(length):
            at = len(positions)
            positions.append(place)
            documents.append(number)
            labels.append(ids[at + 1] if place + 1 < length else -100)
    gap = opened.seq_len - len(positions)
    return positions + [0] * gap, documents + [-1] * gap, labels + [-100] * gap


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_batches_agree_with_the_plain_definition(rows: Artifact, split: str) -> None:
    opened = Rows.open(rows, split)
    indices = np.arange(opened.count)[::-1]
    batch = opened.batch(indices)
    assert [a.dtype for a in (batch.tokens, batch.positions, batch.documents, batch.labels)] == ["i8", "i8", "i4", "i8"]
    for at, row in enumerate(indices.tolist()):
        positions, documents, labels = reference(opened, row)
        assert batch.positions[at].tolist() == positions
        assert batch.documents[at].tolist() == documents
        assert batch.labels[at].tolist() == labels


def test_ranks_and_micro_batches_see_the_rows_of_the_step(rows: Artifact) -> None:
    opened = Rows.open(rows, "train")
    whole = opened.batch(rows_of_step(5, 3, 12, opened.count))
    for ranks, micro in ((1, 4), (2, 3), (3, 1), (4, 3)):
        share = 12 // ranks
        parts: list[Batch] = []
        for rank in range(ranks):
            mine = rows_of_step(5, 3, 12, opened.count)[rank * share : (rank + 1) * share]
            parts += [opened.batch(mine[at : at + micro]) for at in range(0, share, micro)]
        assert (np.concatenate([part.labels for part in parts]) == whole.labels).all()
        assert sum(part.targets for part in parts) == whole.targets
    assert (whole.slice(slice(2, 5)).tokens == whole.tokens[2:5]).all()
    assert whole.slice(slice(2, 5)).rows == 3
    assert opened.batch(np.array([], dtype=np.int64)).tokens.shape == (0, SEQ_LEN)


def test_a_truncated_file_is_found(rows: Artifact) -> None:
    for name in ("train.bin", "train.slices.bin", "train.rows.bin"):
        path = rows.file(name)
        content = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(content[:-8])
        with pytest.raises(IntegrityError, match=f"{name} has {len(content) - 8} bytes, not {len(content)}"):
            Rows.open(rows, "train")
        path.write_bytes(content)
    with pytest.raises(InputError, match="no split 'test'"):
        Rows.open(rows, "test")


def test_a_truncated_shard_is_found(run_stage: RunStage, tokens: Artifact) -> None:
    path = tokens.files(suffix=".bin")[1]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(IntegrityError, match=path.name):
        run_stage("pack", PackConfig(seq_len=SEQ_LEN), {"input": tokens})


def test_a_damaged_table_is_named(run_stage: RunStage, tokens: Artifact, rows: Artifact, store: Store) -> None:
    for artifact, name in ((rows, "train.documents.parquet"), (tokens, "documents-00001.parquet")):
        path = artifact.file(name)
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"documents-00001.parquet is truncated or not Parquet"):
        run_stage("pack", PackConfig(seq_len=SEQ_LEN), {"input": tokens})
    with pytest.raises(InputError, match=r"train.documents.parquet is truncated or not Parquet"):
        list(pieces_of_step(Reading.of(rows, store), 0))


def test_packing_is_deterministic(run_stage: RunStage, tokens: Artifact, rows: Artifact) -> None:
    config = PackConfig(seq_len=SEQ_LEN, heldout_fraction=0.1)
    assert run_stage("pack", config, {"input": tokens}, force=True).artifact.digest == rows.digest


@pytest.mark.parametrize(("texts", "heldout"), [(["one text", "two texts", "three"], 1), (["alone"], 0)])
def test_a_tiny_corpus_still_holds_one_document_out(
    texts: list[str],
    heldout: int,
    run_stage: RunStage,
    write_documents: Any,
    make_tokenizer: Any,
    tokens: Artifact,
    store: Store,
) -> None:
    tokenizer = store.find(tokens.manifest.semantic["tokenizer"])
    given = {"input": write_documents(texts, "tiny"), "tokenizer": tokenizer}
    encoded = run_stage("tokenize", tokenize_config(), given).artifact
    packed = run_stage("pack", PackConfig(seq_len=64, heldout_fraction=1e-6), {"input": encoded}).artifact
    assert packed.manifest.totals["heldout.documents"] == heldout
    assert Rows.open(packed, "heldout").count == heldout
    assert packed.manifest.totals["train.documents"] == len(texts) - heldout or len(texts) == 1
    none = run_stage("pack", PackConfig(seq_len=64, heldout_fraction=0.0), {"input": encoded}).artifact
    assert none.manifest.totals["heldout.documents"] == 0
    empty = Rows.open(none, "heldout")
    assert (empty.count, empty.batch(np.arange(0)).targets) == (0, 0)


def test_nothing_left_to_train_on_is_an_input_error(run_stage: RunStage, tokens: Artifact) -> None:
    with pytest.raises(InputError, match="every document is held out"):
        run_stage("pack", PackConfig(seq_len=64, heldout_fraction=1 - 1e-12), {"input": tokens})


@pytest.mark.parametrize("seq_len", [1, 0, -4])
def test_a_row_needs_two_tokens(seq_len: int) -> None:
    with pytest.raises(ConfigError, match="a row must hold 2 to 16777216 tokens"):
        build(PackConfig, [{"seq_len": seq_len}])


def test_batch_shapes_must_agree() -> None:
    one, two = np.zeros((1, 4), dtype=np.int64), np.zeros((1, 5), dtype=np.int64)
    with pytest.raises(ValueError, match="one shape"):
        Batch(one, two, one.astype(np.int32), one)


def test_shakespeare_packs_tightly(run_stage: RunStage, write_documents: Any, shakespeare: str, tmp_path: Path) -> None:
    scenes = shakespeare.split("\n\n")
    encoded = run_stage("tokenize", tokenize_config(train={"vocab_size": 2000}), {"input": write_documents(scenes)})
    packed = run_stage("pack", PackConfig(seq_len=256), {"input": encoded.artifact}).artifact
    assert packed.manifest.totals["padding"] < 0.01
    assert packed.manifest.totals["tokens"] == encoded.artifact.manifest.totals["tokens"]
