"""Overlap with evaluation sets: what is found, what goes, and what must fail."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.config.decontaminate import DecontaminateConfig
from llmctl.config.errors import InputError
from llmctl.data.decontaminate import run
from llmctl.data.decontaminate.items import Item, tables
from llmctl.data.decontaminate.overlap import Span, find, without, word_places
from llmctl.store.artifact import FileInput
from tests.data.conftest import rows_of
from tests.data.shingle_reference import lowered

QUESTION = "Which of the following rivers flows through the most capital cities of Europe on its long way to the sea"
SHORT = "What is the tallest mountain of the Alps called"  # 9 words
TINY = "Who are you"


def words(count: int, seed: int) -> str:
    chance = random.Random(seed)
    return " ".join(f"w{chance.randrange(10**6)}" for _ in range(count))


def evaluation(path: Path, rows: list[dict[str, Any]]) -> FileInput:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return FileInput.of(path, "prompts")


@pytest.fixture
def contaminated(documents: Callable) -> Any:
    return documents([
        {"id": "clean", "text": words(200, 1)},
        {"id": "leak", "text": f"{words(50, 2)}. Ça… {QUESTION.upper()}? {words(50, 3)}"},
        {"id": "short", "text": f"{SHORT}! {words(30, 4)}"},
        {"id": "near miss", "text": f"{' '.join(QUESTION.split()[:12])} {words(30, 5)}"},
        {"id": "all of it", "text": QUESTION},
    ])  # fmt: skip


def hits(artifact: Any) -> list[dict[str, Any]]:
    return pq.read_table(artifact.file("hits.parquet")).to_pylist()


ROWS = [{"id": "rivers", "question": QUESTION, "choices": ["the Danube", "the Rhine"]},
        {"id": "alps", "question": SHORT, "choices": []}, {"id": "tiny", "question": TINY, "choices": []}]  # fmt: skip


@pytest.mark.parametrize("name", ["set.jsonl", "set.parquet"])
def test_contaminated_documents_are_dropped_and_listed(name, contaminated, stage, tmp_path) -> None:
    against = evaluation(tmp_path / name, ROWS)
    product, artifact = stage(run, DecontaminateConfig(), contaminated, against=against)
    assert [row["id"] for row in rows_of(artifact)] == ["clean", "near miss"]
    found = hits(artifact)
    assert [(hit["id"], hit["item"], hit["ngrams"]) for hit in found] == [
        ("leak", "rivers", 8), ("short", "alps", 1), ("all of it", "rivers", 8),
    ]  # fmt: skip
    texts = {row["id"]: row["text"] for row in rows_of(contaminated)}
    for hit in found:
        assert texts[hit["id"]][hit["start"] : hit["end"]] == hit["text"]
    assert found[0]["text"] == QUESTION.upper()
    totals = product.totals
    assert (totals["in"], totals["kept"], totals["dropped.contaminated"]) == (5, 2, 3)
    assert (totals["items"], totals["items_found"], totals["hits"]) == (3, 2, 3)


def test_spans_are_removed(contaminated, stage, tmp_path) -> None:
    against = evaluation(tmp_path / "set.jsonl", ROWS)
    product, artifact = stage(run, DecontaminateConfig(action="remove"), contaminated, against=against)
    kept = {row["id"]: row["text"] for row in rows_of(artifact)}
    assert list(kept) == ["clean", "leak", "short", "near miss"]
    assert kept["leak"] == f"{words(50, 2)}. Ça… ? {words(50, 3)}"
    assert kept["short"] == f"! {words(30, 4)}"
    assert product.totals["dropped.empty"] == 1
    assert product.totals["in"] == product.totals["kept"] + product.totals["dropped.empty"]


def test_more_ngrams_can_be_asked_for(contaminated, stage, tmp_path) -> None:
    against = evaluation(tmp_path / "set.jsonl", ROWS)
    _, artifact = stage(run, DecontaminateConfig(min_ngrams=9), contaminated, against=against)
    assert len(rows_of(artifact)) == 5
    _, artifact = stage(run, DecontaminateConfig(min_ngrams=8), contaminated, against=against)
    assert [row["id"] for row in rows_of(artifact)] == ["clean", "short", "near miss"]


def test_an_artifact_is_an_evaluation_set_too(contaminated, documents, stage) -> None:
    against = documents([{"id": "page", "text": f"{words(9, 9)} {QUESTION}"}])
    _, artifact = stage(run, DecontaminateConfig(), contaminated, against=against)
    assert [hit["item"] for hit in hits(artifact)] == ["page", "page"]


@pytest.mark.parametrize(("rows", "message"), [
    ([], "holds no evaluation item"),
    ([{"id": "a", "query": QUESTION}], "set.jsonl:1 has none of the text fields"),
    ([{"id": "a", "question": QUESTION}, {"id": "b", "question": None}], "set.jsonl:2 has none of the text fields"),
    ([{"id": "a", "question": TINY}], "no text of .* has 8 words"),
])  # fmt: skip
def test_a_set_that_would_find_nothing_is_refused(rows, message, contaminated, stage, tmp_path) -> None:
    against = evaluation(tmp_path / "set.jsonl", rows)
    with pytest.raises(InputError, match=message):
        stage(run, DecontaminateConfig(), contaminated, against=against)


def test_fields_can_be_named_and_nested(contaminated, stage, tmp_path) -> None:
    against = evaluation(tmp_path / "set.jsonl", [{"turns": [{"role": "user", "content": QUESTION}]}])
    _, artifact = stage(run, DecontaminateConfig(fields=("turns",)), contaminated, against=against)
    assert {hit["item"] for hit in hits(artifact)} == {"set.jsonl:1"}


def test_workers_and_parts_change_nothing(contaminated, stage, tmp_path) -> None:
    against = evaluation(tmp_path / "set.jsonl", ROWS)
    one, two = (stage(run, DecontaminateConfig(workers=n), contaminated, against=against)[1] for n in (1, 2))
    assert [f.sha256 for f in one.manifest.files] == [f.sha256 for f in two.manifest.files]


vocabulary = st.lists(st.sampled_from(["a", "b", "C", "ß", "ΐ", "İx", "ﬁ"]), min_size=1, max_size=25)


@given(vocabulary, vocabulary, st.integers(1, 4))
@settings(deadline=None)
def test_overlap_is_that_of_tuples(document: list[str], item: list[str], n: int) -> None:
    def grams(text: str) -> list[tuple[str, ...]]:
        folded = re.findall(r"\w+", lowered(text))
        return [tuple(folded[i : i + n]) for i in range(len(folded) - n + 1)]

    text, other = ", ".join(document), " ".join(item)
    looked_for, too_short = tables([Item("x", [other])], n, n)
    wanted = set(grams(other))
    assert bool(too_short) == (not wanted)
    found = find(pa.array(["unrelated", text]), looked_for, 1)
    expected = [place for place, gram in enumerate(grams(text)) if gram in wanted]
    assert sum(span.ngrams for span in found.get(1, [])) == len(expected)
    places = word_places(text)
    inside = {place for start in expected for place in range(start, start + n)}
    for place, (start, end) in enumerate(places):
        assert (place in inside) == any(s.start <= start and end <= s.end for s in found.get(1, []))


def test_overlapping_spans_of_several_items_are_cut_once() -> None:
    spans = [Span(0, 1, 2, 6), Span(1, 1, 4, 8), Span(2, 1, 5, 6)]
    assert without("0123456789", spans) == "0189"


def test_what_is_known_of_documents_stays_with_them(documents, stage, tmp_path) -> None:
    rows = [
        {"id": "clean", "text": words(60, 1), "quality": 0.5},
        {"id": "leak", "text": words(60, 2), "quality": 0.25},
    ]
    looked_for = evaluation(tmp_path / "set.jsonl", [{"id": "q", "text": words(60, 2)}])
    _, artifact = stage(run, DecontaminateConfig(), documents(rows, "quality"), against=looked_for)
    assert [(row["id"], row["quality"]) for row in rows_of(artifact)] == [("clean", 0.5)]
    twice = {"id": "both", "text": f"{words(60, 1)} {words(60, 2)}", "quality": 0.75}
    removing = DecontaminateConfig(action="remove")
    _, artifact = stage(run, removing, documents([twice], "quality"), against=looked_for)
    assert [(row["id"], row["quality"]) for row in rows_of(artifact)] == [("both", 0.75)]
