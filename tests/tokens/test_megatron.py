"""Megatron's format, out and in: against bytes written by hand, and an independent reader of the layout."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.config.errors import InputError, IntegrityError, UsageError
from llmctl.config.tokens import FromMegatronConfig, TokenizeConfig
from llmctl.pipeline.execute import Outcome
from llmctl.store.artifact import Artifact
from llmctl.store.store import Store
from llmctl.tokens import megatron
from llmctl.tokens.megatron import open_indexed, write_indexed
from llmctl.tokens.tokenizer import Tokenizer

RunStage = Callable[..., Outcome]


def joined(sequences: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(sequences))


def read_independently(prefix: Path) -> list[list[int]]:
    """Documents, read field by field as Megatron's reader does: nothing of the package is used."""
    index = prefix.with_suffix(".idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack("<Q", index[9:17]) == (1,)
    kind = {4: np.int32, 8: np.uint16}[index[17]]
    sequences, listed = struct.unpack("<QQ", index[18:34])
    lengths = np.frombuffer(index, np.int32, sequences, 34)
    pointers = np.frombuffer(index, np.int64, sequences, 34 + lengths.nbytes)
    documents = np.frombuffer(index, np.int64, listed, 34 + lengths.nbytes + pointers.nbytes)
    assert len(index) == 34 + lengths.nbytes + pointers.nbytes + documents.nbytes
    content = prefix.with_suffix(".bin").read_bytes()
    read = [np.frombuffer(content, kind, n, at).tolist() for n, at in zip(lengths, pointers, strict=True)]
    return [joined(read[start:stop]) for start, stop in itertools.pairwise(documents)]


def write_by_hand(prefix: Path, documents: list[list[list[int]]], code: int, kind: Any, modes: bool = False) -> None:
    """Documents of sequences, in the layout of Megatron's writer."""
    sequences = [sequence for document in documents for sequence in document]
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int32)
    size = np.dtype(kind).itemsize
    pointers = np.array([size * int(lengths[:at].sum()) for at in range(lengths.size)], dtype=np.int64)
    ends = np.cumsum([0, *(len(document) for document in documents)]).astype(np.int64)
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, lengths.size, ends.size)
    tail = bytes(lengths.size) if modes else b""
    prefix.with_suffix(".idx").write_bytes(header + lengths.tobytes() + pointers.tobytes() + ends.tobytes() + tail)
    prefix.with_suffix(".bin").write_bytes(np.array(joined(sequences), dtype=kind).tobytes())


@pytest.fixture
def tokens(run_stage: RunStage, write_documents: Any, documents: list[str]) -> Artifact:
    config = TokenizeConfig.model_validate({"train": {"vocab_size": 700}, "shard_tokens": 10_000})
    return run_stage("tokenize", config, {"input": write_documents(documents)}).artifact


def ours(artifact: Artifact) -> list[list[int]]:
    found = []
    for path in artifact.files(suffix=".parquet"):
        shard = np.fromfile(path.with_name(path.name.replace("documents", "tokens").replace("parquet", "bin")), "u2")
        rows = pq.read_table(path).to_pylist()
        found += [shard[row["offset"] : row["offset"] + row["tokens"]].tolist() for row in rows]
    return found


def imported(run_stage: RunStage, tokenizer: Artifact, *prefixes: Path, **fields: Any) -> Artifact:
    config = FromMegatronConfig.model_validate({"prefixes": [str(prefix) for prefix in prefixes], **fields})
    return run_stage("from-megatron", config, {"tokenizer": tokenizer}, name="back.tokenize").artifact


@pytest.fixture
def tokenizer(tokens: Artifact, store: Store) -> Artifact:
    return store.find(tokens.manifest.semantic["tokenizer"])


def test_out_and_back(
    run_stage: RunStage, tokens: Artifact, tokenizer: Artifact, tmp_path: Path, documents: list[str]
) -> None:
    written = write_indexed(tokens, str(tmp_path / "corpus"))
    assert (written["documents"], written["dtype"]) == (len(documents), "uint16")
    assert read_independently(tmp_path / "corpus") == ours(tokens)
    back = imported(run_stage, tokenizer, tmp_path / "corpus", shard_tokens=10_000)
    assert ours(back) == ours(tokens)
    assert back.manifest.totals["bytes"] == tokens.manifest.totals["bytes"]
    assert back.manifest.semantic == tokens.manifest.semantic
    assert [a.sha256 for a in back.manifest.files if a.path.endswith(".bin")] == [
        a.sha256 for a in tokens.manifest.files if a.path.endswith(".bin")
    ]


def test_what_others_wrote_is_framed(run_stage: RunStage, tokenizer: Artifact, tmp_path: Path) -> None:
    opened = Tokenizer.open(tokenizer.data)
    bos, eos = opened.bos_id, opened.eos_id
    ids = opened.encode("text of a document")
    documents = [[[*ids, eos]], [ids[:2], ids[2:]], [], [[bos, *ids]], [[bos, eos]]]
    write_by_hand(tmp_path / "theirs", documents, 4, np.int32, modes=True)
    back = imported(run_stage, tokenizer, tmp_path / "theirs.bin")
    whole = [bos, *ids, eos]
    assert ours(back) == [whole, whole, [bos, eos], whole, [bos, eos]]
    table = pq.read_table(back.files(suffix=".parquet")[0])
    assert table.column("id").to_pylist()[:2] == ["theirs/000000000", "theirs/000000001"]
    assert table.column("bytes").to_pylist() == [18, 18, 0, 18, 0]


@settings(deadline=None, max_examples=60)
@given(
    documents=st.lists(st.lists(st.lists(st.integers(0, 65_000), max_size=9), max_size=3), min_size=1, max_size=12),
    wide=st.booleans(),
    chunk=st.integers(1, 20),
)
def test_any_dataset_is_read_document_by_document(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[list[int]]], wide: bool, chunk: int
) -> None:
    prefix = tmp_path_factory.mktemp("set") / "any"
    write_by_hand(prefix, documents, 4 if wide else 8, np.int32 if wide else np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(megatron, "CHUNK_TOKENS", chunk)
        read = [
            one.tolist()
            for sizes, ids in open_indexed(str(prefix)).chunks()
            for one in np.split(ids, np.cumsum(sizes)[:-1])
        ]
    assert read == [joined(document) for document in documents]


def test_ids_beyond_sixteen_bits_are_int32(tokens: Artifact, tmp_path: Path) -> None:
    path = tokens.files(suffix=".bin")[0]
    wide = np.fromfile(path, np.uint16).astype(np.uint32)
    for path in tokens.files(suffix=".bin"):
        wide = np.fromfile(path, np.uint16).astype(np.uint32)
        path.chmod(0o644)
        wide.tofile(path)
    tokens.manifest.semantic["dtype"] = "uint32"
    assert write_indexed(tokens, str(tmp_path / "wide"))["dtype"] == "int32"
    assert len(read_independently(tmp_path / "wide")) == tokens.manifest.totals["documents"]


def test_damage_is_named(run_stage: RunStage, tokenizer: Artifact, tokens: Artifact, tmp_path: Path) -> None:
    prefix = tmp_path / "set"
    write_by_hand(prefix, [[[10, 11, 12]], [[13, 14]]], 8, np.uint16)
    index, content = prefix.with_suffix(".idx"), prefix.with_suffix(".idx").read_bytes()
    for changed, message in (
        (content[:-1], "81 bytes, not 82"),
        (content[:20], "is not a Megatron index"),
        (b"X" + content[1:], "is not a Megatron index"),
        (content[:9] + struct.pack("<Q", 2) + content[17:], "version 2"),
        (content[:17] + bytes([7]) + content[18:], "type 7"),
        (content[:34] + struct.pack("<i", -3) + content[38:], "points outside"),
        (content[:-8] + struct.pack("<q", 1), "do not cover its 2 sequences"),
    ):
        index.write_bytes(changed)
        with pytest.raises(InputError, match=message):
            imported(run_stage, tokenizer, prefix)
    index.write_bytes(content)
    prefix.with_suffix(".bin").write_bytes(bytes(8))
    with pytest.raises(InputError, match="points outside .*set.bin of 8 bytes"):
        imported(run_stage, tokenizer, prefix)
    write_by_hand(prefix, [[[10, 700]]], 8, np.uint16)
    with pytest.raises(InputError, match="holds the id 700; the tokenizer has 700 ids"):
        imported(run_stage, tokenizer, prefix)
    write_by_hand(prefix, [], 8, np.uint16)
    with pytest.raises(InputError, match="no documents"):
        imported(run_stage, tokenizer, prefix)
    with pytest.raises(InputError, match="does not exist"):
        imported(run_stage, tokenizer, tmp_path / "none")
    with pytest.raises(UsageError, match="needs a dataset"):
        imported(run_stage, tokenizer)
    with pytest.raises(UsageError, match="two datasets are called set"):
        imported(run_stage, tokenizer, prefix, prefix)
    with pytest.raises(InputError, match="is a tokenizer artifact"):
        write_indexed(tokenizer, str(tmp_path / "out"))
    path = tokens.files(suffix=".bin")[0]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(IntegrityError, match=path.name):
        write_indexed(tokens, str(tmp_path / "out"))
    assert not (tmp_path / "out.idx").exists()
    assert not (tmp_path / "out.bin").exists()


def test_the_command_line(llmctl: Any, tokens: Artifact, tmp_path: Path) -> None:
    out = llmctl("to-megatron", tokens.ref, "corpus", "--json")
    assert out.returncode == 0, out.stderr
    assert f'"documents":{tokens.manifest.totals["documents"]}' in out.stdout.replace(" ", "")
    digest = tokens.manifest.semantic["tokenizer"]
    back = llmctl("from-megatron", "corpus", "--tokenizer", f"docs.tokenizer@{digest}", "-q")
    assert (back.returncode, back.stdout) == (0, "corpus.tokenize@v1\n"), back.stderr
