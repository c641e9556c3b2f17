"""Fill-in-the-middle: nothing is lost, order and marks are right, and only the id and the seed decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.config.errors import ConfigError
from llmctl.config.load import build
from llmctl.config.tokens import FimConfig, PackConfig, TokenizeConfig
from llmctl.pipeline.execute import Outcome
from llmctl.store.artifact import Artifact
from llmctl.store.store import Store
from llmctl.tokens import infill
from llmctl.tokens.corpus import Corpus
from llmctl.tokens.fit import Ints
from llmctl.tokens.infill import Infill, mark_ids
from llmctl.tokens.reading import Reading, pieces_of_step
from llmctl.tokens.rows import Rows
from llmctl.tokens.tokenizer import Tokenizer

RunStage = Callable[..., Outcome]
BOS, EOS, PRE, SUF, MID = 1, 2, 3, 4, 5
MARKS = (PRE, SUF, MID)


def corpus_of(lengths: list[int], names: list[str] | None = None) -> Corpus:
    """Documents of so many different ids between BOS and EOS, in shards of three documents."""
    names = names or [f"document {number}" for number in range(len(lengths))]
    first, shards, shard, offset, tokens = 10, [], [], [], []
    for start in range(0, len(lengths), 3):
        parts = []
        for length in lengths[start : start + 3]:
            parts.append(np.array([BOS, *range(first, first + length), EOS], dtype=np.uint32))
            shard.append(len(shards))
            offset.append(sum(part.size for part in parts[:-1]))
            tokens.append(parts[-1].size)
            first += length
        shards.append(np.concatenate(parts))
    return Corpus(
        shards,
        np.array(shard, dtype=np.int32),
        np.array(offset),
        np.array(tokens),
        np.zeros(len(lengths), dtype=np.bool_),
        np.zeros(len(lengths), dtype=np.int32),
        np.array([xxhash.xxh64_intdigest(name.encode()) for name in names], dtype=np.uint64),
    )


def documents_of(corpus: Corpus) -> list[list[int]]:
    return [
        corpus.shards[shard][start : start + length].tolist()
        for shard, start, length in zip(corpus.shard, corpus.offset, corpus.tokens, strict=True)
    ]


def restored(part: list[int]) -> list[int]:
    """A rearranged part as it was, by the definition."""
    head = part[: part.index(PRE)]
    tail = [EOS] if part[-1] == EOS else []
    body = part[part.index(PRE) + 1 : len(part) - len(tail)]
    prefix, rest = body[: body.index(SUF)], body[body.index(SUF) + 1 :]
    suffix, middle = rest[: rest.index(MID)], rest[rest.index(MID) + 1 :]
    return [*head, *prefix, *middle, *suffix, *tail]  # PSM; in SPM the prefix is empty and begins the middle


def settings_of(**fields: Any) -> FimConfig:
    return FimConfig.model_validate({"rate": 0.5, **fields})


@settings(deadline=None, max_examples=100)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=30),
    seq_len=st.integers(8, 40),
    rate=st.sampled_from([0.3, 1.0]),
    spm_rate=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
    chunk=st.integers(1, 100),
)
def test_every_token_is_still_there_in_its_place(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    seq_len: int,
    rate: float,
    spm_rate: float,
    seed: int,
    chunk: int,
) -> None:
    before = corpus_of(lengths)
    config = settings_of(rate=rate, spm_rate=spm_rate, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infill, "CHUNK_TOKENS", chunk)
        changer = Infill(config, MARKS, seq_len)
        after = changer.applied(before, tmp_path_factory.mktemp("infill") / "tokens.bin")
    chosen = set(changer.chosen(before).tolist())
    assert rate < 1 or len(chosen) == len(lengths)
    for number, (old, new) in enumerate(zip(documents_of(before), documents_of(after), strict=True)):
        if number not in chosen:
            assert new == old
            continue
        parts = [new[at : at + seq_len] for at in range(0, len(new), seq_len)]  # each row of a long one is a part
        for part in parts:
            places = [part.index(mark) for mark in MARKS]
            assert places == sorted(places)
            if spm_rate == 1.0:
                assert places[1] == places[0] + 1
        assert [token for part in parts for token in restored(part)] == old


def test_the_shares_are_those_asked_for(tmp_path: Path) -> None:
    before = corpus_of([30] * 4000)
    after = Infill(settings_of(rate=0.3, spm_rate=0.25), MARKS, 64).applied(before, tmp_path / "tokens.bin")
    changed = [ids for ids in documents_of(after) if PRE in ids]
    assert abs(len(changed) / 4000 - 0.3) < 0.03
    suffix_first = np.mean([ids.index(SUF) == ids.index(PRE) + 1 for ids in changed])
    assert abs(suffix_first - (0.25 + 0.75 * 2 / 32)) < 0.05  # and PSM with an empty prefix: 31 cuts, either one first
    middles = np.array([len(ids) - 2 - ids.index(MID) for ids in changed if ids.index(SUF) > ids.index(PRE) + 1])
    assert abs(middles.mean() - 30 / 3) < 1.5  # two uniform cuts leave a third between them


def test_the_id_and_the_seed_decide_alone(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(60)]
    one = corpus_of([20] * 60, names)
    config = settings_of(seed=3)
    whole = documents_of(Infill(config, MARKS, 64).applied(one, tmp_path / "one.bin"))
    few = documents_of(Infill(config, MARKS, 64).applied(corpus_of([20] * 30, names[:30]), tmp_path / "few.bin"))
    assert whole[:30] == few
    other = documents_of(Infill(settings_of(seed=4), MARKS, 64).applied(one, tmp_path / "other.bin"))
    assert sum(a != b for a, b in zip(whole, other, strict=True)) > 20


def test_held_out_documents_stay_as_they_are(tmp_path: Path) -> None:
    corpus = corpus_of([20] * 50)
    corpus.heldout[::2] = True
    changer = Infill(settings_of(rate=1.0), MARKS, 64)
    chosen: Ints = changer.chosen(corpus)
    assert chosen.tolist() == list(range(1, 50, 2))


@pytest.fixture
def tokens(run_stage: RunStage, write_documents: Any, documents: list[str]) -> Artifact:
    config = TokenizeConfig.model_validate({"train": {"vocab_size": 700}, "shard_tokens": 10_000})
    return run_stage("tokenize", config, {"input": write_documents(documents)}).artifact


def test_packed_rows_hold_all_of_it(run_stage: RunStage, tokens: Artifact, store: Store) -> None:
    fim = {"rate": 0.6, "ids": [4, 5, 0], "seed": 9}
    config = PackConfig.model_validate({"seq_len": 128, "heldout_fraction": 0.1, "fim": fim})
    packed = run_stage("pack", config, {"input": tokens}).artifact
    assert run_stage("pack", config, {"input": tokens}, force=True).artifact.digest == packed.digest
    totals = packed.manifest.totals
    assert totals["padding"] < 0.01
    rows = Rows.open(packed, "train")
    batch = rows.batch(np.arange(rows.count))
    table = pq.read_table(packed.file("train.documents.parquet"))
    names = table.column("id").to_pylist()
    lengths = dict(zip(names, table.column("tokens").to_pylist(), strict=True))
    pieces: dict[str, list[tuple[int, list[int]]]] = {}
    for row in range(rows.count):
        at = 0
        for document, start, length in rows.slices_of(row).tolist():
            pieces.setdefault(names[document], []).append((start, batch.tokens[row, at : at + length].tolist()))
            at += length
    marks = np.isin(batch.tokens, fim["ids"]).sum()
    assert totals["tokens"] == tokens.manifest.totals["tokens"] + marks
    changed = 0
    for path in tokens.files(suffix=".parquet"):
        shard = np.fromfile(path.with_name(path.name.replace("documents", "tokens").replace("parquet", "bin")), "u2")
        for entry in pq.read_table(path).to_pylist():
            if entry["id"] in pieces:
                original = shard[entry["offset"] : entry["offset"] + entry["tokens"]].tolist()
                ids = [token for _, some in sorted(pieces[entry["id"]]) for token in some]
                assert sorted(token for token in ids if token not in fim["ids"]) == sorted(original)
                changed += ids != original
                assert lengths[entry["id"]] == len(ids)
    assert changed == totals["fim.documents"] == packed.manifest.semantic["fim"]["documents"] > 30
    shown = "".join(piece.text for piece in pieces_of_step(Reading.of(packed, store), 0))
    assert shown.count("<PRE>") > 0
    assert abs(shown.count("<PRE>") - shown.count("<MID>")) <= 1


def test_marks_are_the_tokenizers_own_or_given(run_stage: RunStage, tokens: Artifact, bpe: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="the tokenizer has no tokens that mark"):
        run_stage("pack", PackConfig.model_validate({"fim": {"rate": 0.5}}), {"input": tokens})
    for ids in ([1, 1, 2], [5, 6, 700]):
        with pytest.raises(ConfigError, match="are no three ids"):
            run_stage("pack", PackConfig.model_validate({"fim": {"rate": 0.5, "ids": ids}}), {"input": tokens})
    with pytest.raises(ConfigError, match="fim needs rows of 8 tokens"):
        build(PackConfig, [{"seq_len": 7, "fim": {"rate": 0.1}}])
    bpe_like = Tokenizer.__new__(Tokenizer)
    bpe_like.special = {**bpe.special, "<fim_prefix>": 7, "<fim_middle>": 8, "<fim_suffix>": 9}
    assert mark_ids(settings_of(), bpe_like, 1000) == (7, 9, 8)
    published = ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"]  # noqa: RUF001 (DeepSeek-Coder's)
    bpe_like.special = dict(zip(published, (7, 9, 8), strict=True))
    assert mark_ids(settings_of(), bpe_like, 1000) == (7, 9, 8)
