"""`pack` of one input and of several, and `show --step --rank`, through real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.store.store import Store

RECIPE = """
version: 1
name: corpus
steps:
  a: {uses: collect, with: {sources: [web.jsonl]}}
  b: {uses: collect, with: {sources: [code.jsonl]}}
  words: {uses: tokenizer, in: a, with: {vocab_size: 300}}
  web: {uses: tokenize, in: {input: a, tokenizer: words}}
  code: {uses: tokenize, in: {input: b, tokenizer: words}}
  mixed:
    uses: pack
    in: {web: web, code: code}
    with: {seq_len: 32, weights: {web: 1, code: 1}}
  plain: {uses: pack, in: web, with: {seq_len: 32}}
"""


@pytest.fixture
def tokens(llmctl: Any, tmp_path: Path) -> Path:
    """The artifacts `web` (60 documents) and `code` (20), of one tokenizer."""
    for name, count in (("web", 60), ("code", 20)):
        rows = [{"id": f"{name}{n}", "text": f"{name} text {n} says {n * n} and more " * 4} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "corpus.yaml").write_text(RECIPE)
    done = llmctl("run", "corpus.yaml")
    assert done.returncode == 0, done.stderr
    return tmp_path


def manifest(root: Path, ref: str) -> Any:
    return Store.open(root / "artifacts").resolve(ref).manifest


def test_one_input_or_many(llmctl: Any, tokens: Path) -> None:
    mixed = manifest(tokens, "corpus.mixed")
    assert mixed.semantic["sources"] == ["code", "web"]
    assert set(mixed.inputs) == {"sources.code", "sources.web", "tokenizer"}
    assert "mixture" not in manifest(tokens, "corpus.plain").semantic
    words = ("web:corpus.web=1", "code:corpus.code=1", "--seq-len", "32", "--name", "corpus.mixed")
    again = llmctl("pack", *words)
    assert json.loads(again.stdout.splitlines()[-1])["cached"] is True, again.stderr
    single = llmctl("pack", "corpus.web", "--seq-len", "32", "--name", "corpus.plain")
    assert json.loads(single.stdout.splitlines()[-1])["cached"] is True, single.stderr
    piped = llmctl("pack", "--seq-len", "32", "-q", stdin=llmctl("cat", "corpus.web").stdout)
    assert (piped.returncode, piped.stdout) == (0, "corpus.pack@v1\n"), piped.stderr
    beside = llmctl("pack", *words, stdin="not a receipt")
    assert beside.returncode == 0, "named sources leave the pipe alone"
    assert llmctl("pack", "corpus.web=1").returncode == 2
    nothing = llmctl("pack")
    assert nothing.returncode == 2
    assert "pack needs token shards to pack" in nothing.stderr


def test_show_what_a_rank_saw(llmctl: Any, tokens: Path) -> None:
    step = ("show", "corpus.mixed", "--step", "3", "--seed", "4", "--batch-rows", "6")
    whole = [json.loads(line) for line in llmctl(*step, "--json").stdout.splitlines()]
    part = llmctl(*step, "--rank", "1", "--world-size", "2", "--json")
    pieces = [json.loads(line) for line in part.stdout.splitlines()]
    rows = list(dict.fromkeys(piece["row"] for piece in whole))
    assert list(dict.fromkeys(piece["row"] for piece in pieces)) == rows[3:]
    assert {piece["rank"] for piece in pieces} == {1}
    shown = llmctl(*step, "--rank", "1", "--world-size", "2").stdout
    assert f"== rank 1, micro-batch 0, row {rows[3]}, " in shown
    assert "text" in shown
    wrong = llmctl(*step, "--rank", "2", "--world-size", "2")
    assert wrong.returncode == 2
    assert "there is no rank 2" in wrong.stderr
