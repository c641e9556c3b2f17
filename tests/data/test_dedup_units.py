"""Paragraphs and lines that stood earlier in the corpus."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.config.dedup import DedupConfig
from llmctl.data.dedup import run, units
from llmctl.data.dedup.units import joined, mark_seen, split
from tests.data.conftest import rows_of
from tests.data.test_dedup import random_words


def test_lines_seen_before_are_cut_and_emptied_documents_go(documents: Callable, stage: Callable) -> None:
    given = documents([
        {"id": "a", "text": "Menu\n\nfirst text\nHome  |  Contact\nMenu"}, {"id": "b", "text": "menu\nsecond text\n\n"},
        {"id": "c", "text": "HOME | contact\n \nmenu"}, {"id": "e", "text": ""},
        {"id": "d", "text": "untouched\n\n\n  as it was "},
    ])  # fmt: skip
    product, artifact = stage(run, DedupConfig(unit="line", exact=False, near=False), given)
    assert {row["id"]: row["text"] for row in rows_of(artifact)} == {
        "a": "Menu\n\nfirst text\nHome  |  Contact", "b": "second text\n\n", "e": "",
        "d": "untouched\n\n\n  as it was ",
    }  # fmt: skip
    totals = product.totals
    assert (totals["in"], totals["kept"], totals["dropped.empty"], totals["lines_removed"]) == (5, 4, 1, 4)
    assert totals["bytes_in"] > totals["bytes"]


def test_paragraphs_are_cut_before_documents_are_compared(documents: Callable, stage: Callable) -> None:
    footer = " ".join(random_words(random.Random(9), 80))
    one, two = (" ".join(random_words(random.Random(seed), 30)) for seed in (1, 2))
    given = documents([
        {"id": "a", "text": f"{one}\n\n{footer}"}, {"id": "b", "text": f"{two}\n \n\n{footer}"},
        {"id": "c", "text": f"{footer}\n\n{one}"},
    ])  # fmt: skip
    product, artifact = stage(run, DedupConfig(unit="paragraph", threshold=0.5), given)
    assert [row["text"] for row in rows_of(artifact)] == [f"{one}\n\n{footer}", two]
    assert (product.totals["dropped.near"], product.totals["dropped.empty"]) == (0, 1)
    assert product.totals["paragraphs_removed"] == 3
    without, _ = stage(run, DedupConfig(threshold=0.5), given)
    assert without.totals["dropped.near"] == 2


texts = st.lists(st.lists(st.sampled_from(["a", "b", "A ", "", " ", "c\td"]), max_size=5).map("\n".join), max_size=6)


@given(texts, st.sampled_from(["line", "paragraph"]))
def test_what_is_split_is_joined_again(given, unit) -> None:
    for text in given:
        assert " ".join(joined(split(text, unit), unit).split()) == " ".join(text.split())
        if unit == "line":
            assert joined(split(text, unit), unit) == text


@given(st.lists(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), max_size=30), min_size=1, max_size=4))
@settings(deadline=None)
def test_marks_are_those_of_a_set(tmp_path_factory, given) -> None:
    directory = tmp_path_factory.mktemp("units")
    files = [directory / f"{number}.npy" for number in range(len(given))]
    for path, hashes in zip(files, given, strict=True):
        np.save(path, np.array(hashes, dtype=np.uint64))
    before, units.UNITS_AT_ONCE = units.UNITS_AT_ONCE, 4  # several shares
    try:
        marks = [np.load(path).tolist() for path in mark_seen(files, [len(h) for h in given], directory / "seen")]
    finally:
        units.UNITS_AT_ONCE = before
    seen: set[int] = set()
    expected = [[value in seen or bool(seen.add(value)) for value in hashes] for hashes in given]
    assert marks == expected


@pytest.mark.parametrize("unit", ["line", "paragraph"])
def test_workers_change_nothing(unit, documents, stage) -> None:
    chance = random.Random(4)
    given = documents([
        {"id": str(n), "text": "\n\n".join(" ".join(random_words(chance, 3)) if chance.random() < 0.5 else "again"
                                           for _ in range(8))} for n in range(40)
    ])  # fmt: skip
    one, two = (stage(run, DedupConfig(unit=unit, workers=n), given)[1] for n in (1, 2))
    assert [f.sha256 for f in one.manifest.files] == [f.sha256 for f in two.manifest.files]
    assert sum(row["text"].count("again") for row in rows_of(one)) == 1
