"""`mix` and `stats` through real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llmctl.store.store import Store

RECIPE = """
version: 1
name: small
steps:
  a: {uses: collect, with: {sources: [web.jsonl]}}
  b: {uses: collect, with: {sources: [books.jsonl]}}
  corpus:
    uses: mix
    in: {web: a, books: b}
    with: {weights: {web: 3, books: 1}, by: documents, documents: 40}
"""


@pytest.fixture
def sources(llmctl: Any, tmp_path: Path) -> Path:
    """The artifacts `web` and `books`, of 60 and 20 different documents."""
    for name, count in (("web", 60), ("books", 20)):
        rows = [
            {"id": f"{name}{n}", "text": f"{name} page {n} says {n * n} and more", "url": f"https://{name}.org/{n}"}
            for n in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert llmctl("collect", f"{name}.jsonl", "-q").stdout == f"{name}@v1\n"
    return tmp_path


def totals(root: Path, ref: str) -> dict[str, Any]:
    return Store.open(root / "artifacts").resolve(ref).manifest.totals


def test_mix_by_weights(llmctl: Any, sources: Path) -> None:
    done = llmctl("mix", "web=3", "books=1", "--by", "documents", "--documents", "40", "--name", "corpus", "-q")
    assert (done.returncode, done.stdout) == (0, "corpus@v1\n"), done.stderr
    found = totals(sources, "corpus")
    assert (found["sources.web.documents"], found["sources.books.documents"]) == (30, 10)
    inputs = Store.open(sources / "artifacts").resolve("corpus").manifest.inputs
    assert {role: entry.ref for role, entry in inputs.items()} == {"sources.web": "web@v1", "sources.books": "books@v1"}
    again = llmctl("mix", "books@v1=1", "web=3", "by=documents", "documents=40", "--name", "corpus")
    assert json.loads(again.stdout.splitlines()[-1])["cached"] is True, "the order of the words does not matter"
    assert "books-web.mix@v1" in llmctl("mix", "web", "books", "-q").stdout
    named = llmctl("mix", "x:web=1", "y:web@v1=1", "--documents", "20", "-q", "--name", "twice")
    assert named.returncode == 0, named.stderr
    assert totals(sources, "twice")["sources.y.documents"] == 10


def test_a_recipe_gives_the_same(llmctl: Any, sources: Path) -> None:
    (sources / "small.yaml").write_text(RECIPE)
    done = llmctl("run", "small.yaml", "--json")
    assert done.returncode == 0, done.stderr
    llmctl("mix", "web=3", "books=1", "--by", "documents", "--documents", "40", "--name", "corpus", "-q")
    assert totals(sources, "small.corpus") == totals(sources, "corpus")
    assert llmctl("run", "small.yaml", "corpus.weights.web=1", "-q").stdout.split()[-1] == "small.corpus@v2"
    (sources / "small.yaml").write_text(RECIPE.replace("{web: a, books: b}", "{web: a, books: c, tokenizer: b}"))
    wrong = llmctl("run", "small.yaml", "--dry-run")
    assert wrong.returncode == 2
    assert "steps.corpus.in.tokenizer: b makes documents, not tokenizer" in wrong.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["web=1", "books=0"], 2, "weights.books: Input should be greater than 0, got '0'"),
        (["web=1", "books=-2"], 2, "weights.books: Input should be greater than 0"),
        (["web=1", "books=much"], 2, "weights.books: Input should be a valid number"),
        (["web=1", "books"], 2, "weights.books: is missing"),
        (["web=1", "weights.bokks=2"], 2, "weights.bokks: no such source"),
        (["web=1", "bokks=2"], 3, "no artifact is called 'bokks'"),
        (["web=1", "web@v1=2"], 2, "another input is called web"),
        (["web", "books", "max_epoch=2"], 2, "max_epoch: unknown key"),
        (["web=1", "books=1", "--documents", "9999"], 3, "needs more than 4 epochs of books"),
        (["web", "--tokens", "5", "--bytes", "5"], 2, "give one total"),
        (["web=1", "--temperature", "2"], 2, "not both"),
        ([], 2, "mix needs documents to mix"),
    ],
)
def test_bad_input_is_one_clear_line(llmctl: Any, sources: Path, words: list[str], code: int, message: str) -> None:
    done = llmctl("mix", *words, "-q")
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert llmctl("ls", "-q").stdout.split() == ["books@v1", "web@v1"], "nothing is published"


def test_an_empty_source(llmctl: Any, sources: Path) -> None:
    done = llmctl("mix", "web=1", "books=1", "heldout_fraction=0.999999", "-q")
    assert done.returncode == 3
    assert "holds no document to train on" in done.stderr


def test_stats_as_table_json_and_picture(llmctl: Any, sources: Path) -> None:
    shown = llmctl("stats", "web", "--png", "web.png", "--top", "2")
    assert shown.returncode == 0, shown.stderr
    assert "web@v1  60 documents, 420 words" in shown.stdout
    assert "web.org" in shown.stdout
    with Image.open(sources / "web.png") as image:
        assert image.width > 1000
    done = llmctl("stats", "web", "--json", "ngram_words=[2]")
    figures = json.loads(done.stdout)
    assert (figures["documents"], figures["domains"]["top"][0]["value"]) == (60, "web.org")
    assert [one["words"] for one in figures["ngrams"]] == [2]
    assert figures["ngrams"][0]["top"][0] == {"text": "and more", "count": 60}
    piped = llmctl("stats", "--json", stdin=llmctl("cat", "web").stdout)
    assert json.loads(piped.stdout)["digest"] == figures["digest"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nobody"], 3, "no artifact is called 'nobody'"),
        (["web", "tob=3"], 2, "tob: unknown key (did you mean top?)"),
        (["web", "ngram_words=[0]"], 2, "ngram_words.0"),
        (["web", "--png", "no/such/folder.png"], 3, "there is no folder no/such"),
        (["web", "books"], 2, "one argument too many"),
    ],
)
def test_stats_with_bad_input(llmctl: Any, sources: Path, words: list[str], code: int, message: str) -> None:
    done = llmctl("stats", *words)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_stats_of_a_tokenizer(llmctl: Any, sources: Path) -> None:
    made = llmctl("tokenizer", "web", "--model", "byte-bpe", "--vocab-size", "275", "-q")
    assert (made.returncode, made.stdout) == (0, "web.tokenizer@v1\n"), made.stderr
    shown = llmctl("stats", "web.tokenizer", "--on", "books")
    assert shown.returncode == 0, shown.stderr
    assert "275 ids, on books@v1: 20 documents" in shown.stdout
    figures = json.loads(llmctl("stats", "web.tokenizer", "--on", "books", "--json").stdout)
    assert (figures["ref"], figures["on"], figures["unknown_rate"]) == ("web.tokenizer@v1", "books@v1", 0.0)
    assert figures["bytes"] == figures["sources"]["top"][0]["bytes"]
    for words in (("web.tokenizer",), ("web", "--on", "books")):
        refused = llmctl("stats", *words)
        assert refused.returncode == 2
        assert "llmctl stats TOKENIZER --on DOCUMENTS" in refused.stderr


def test_a_fresh_pipe_is_measured_where_there_was_no_store(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "page.txt").write_text("a page of five words\n")
    done = shell("llmctl collect page.txt | llmctl stats --json ngram_words=[1]")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["words"] == 5
