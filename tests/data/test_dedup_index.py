"""Deduplication against an earlier corpus, by its index alone; survivors by rule; sources; resuming."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmctl.config.dedup import DedupConfig
from llmctl.config.errors import InputError
from llmctl.data.dedup import run
from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import DOCUMENTS
from llmctl.pipeline.job import Job, Product, Silent
from tests.data.conftest import artifact_of, rows_of, unused
from tests.data.test_dedup import clusters_of, random_words, true_jaccard


def altered(words: list[str], count: int, seed: int) -> list[str]:
    chance, copy = random.Random(seed), list(words)
    for place in chance.sample(range(len(copy)), count):
        copy[place] = f"y{chance.randrange(10**6)}"
    return copy


@pytest.fixture(scope="module")
def crawls() -> tuple[list[dict[str, str]], list[dict[str, str]], dict[str, float]]:
    """(earlier rows, later rows, exact Jaccard of each later row with its earlier one)."""
    earlier, later, truth = [], [], {}
    for number in range(80):
        words = random_words(random.Random(number), 300)
        earlier.append({"id": f"old{number}", "text": " ".join(words)})
        other = altered(words, number % 20, number)
        name = f"new{number}"
        truth[name] = true_jaccard(words, other)
        later.append({"id": name, "text": " ".join(other).upper() + "!"})
    later += [
        {"id": "exact", "text": earlier[3]["text"].title()},
        {"id": "fresh", "text": " ".join(random_words(random.Random(999)))},
    ]
    return earlier, later, truth


def test_a_later_crawl_loses_what_the_earlier_one_has(crawls, documents, stage) -> None:
    earlier, later, truth = crawls
    product, first = stage(run, DedupConfig(index=True), documents(earlier))
    assert product.totals["kept"] == 80
    for path in first.data.glob("part-*"):
        path.unlink()  # the earlier text is not needed
    product, second = stage(run, DedupConfig(), documents(later), against=first)
    gone = clusters_of(second)
    assert gone["exact"]["representative"] == "old3"
    assert gone["exact"]["reason"] == "against_exact"
    near = {name for name, value in truth.items() if value >= 0.8}
    found = {name for name, row in gone.items() if row["reason"] == "against_near"}
    assert found <= near
    assert len(found) >= 0.97 * len(near) > 10
    for name in found:
        assert gone[name]["representative"] == name.replace("new", "old")
        assert gone[name]["jaccard"] == pytest.approx(truth[name], abs=1e-12)
    totals = product.totals
    dropped = sum(value for key, value in totals.items() if key.startswith("dropped."))
    assert totals["in"] == totals["kept"] + dropped == len(later)
    assert "fresh" in [row["id"] for row in rows_of(second)]


def test_copies_of_what_the_earlier_corpus_has_go_with_it(documents, stage) -> None:
    words = random_words(random.Random(1), 200)
    _, first = stage(run, DedupConfig(index=True), documents([{"id": "old", "text": " ".join(words)}]))
    near = " ".join(altered(words, 2, 1))
    given = documents([{"id": "a", "text": near}, {"id": "b", "text": near.upper()}, {"id": "c", "text": "other"}])
    _, second = stage(run, DedupConfig(), given, against=first)
    rows = clusters_of(second)
    assert {name: (row["representative"], row["reason"]) for name, row in rows.items()} == {
        "a": ("old", "against_near"), "b": ("old", "against_near"),
    }  # fmt: skip


def test_the_index_holds_what_stays_and_costs_what_the_documentation_says(crawls, documents, stage) -> None:
    earlier, _, _ = crawls
    given = documents([*earlier, {"id": "copy", "text": earlier[0]["text"]}])
    _, artifact = stage(run, DedupConfig(index=True), given)
    table = pq.read_table(artifact.file("index-00000.parquet"))
    assert table["id"].to_pylist() == [row["id"] for row in rows_of(artifact)]
    shingle_count = len(table["shingles"].combine_chunks().flatten())
    assert shingle_count == 80 * 296
    size = artifact.file("index-00000.parquet").stat().st_size
    assert size < len(table) * (16 + 8 * 24 + 120) + 5.0 * shingle_count


def test_an_index_of_another_making_is_refused(crawls, documents, stage) -> None:
    earlier, later, _ = crawls
    _, bare = stage(run, DedupConfig(), documents(earlier))
    with pytest.raises(InputError, match="holds no index"):
        stage(run, DedupConfig(), documents(later), against=bare)
    _, other = stage(run, DedupConfig(index=True, ngram_words=3), documents(earlier))
    with pytest.raises(InputError, match="ngram_words 3, not 5"):
        stage(run, DedupConfig(), documents(later), against=other)


def with_quality(directory: Path, rows: list[dict[str, object]]) -> object:
    schema = pa.schema([*DOCUMENTS, pa.field("quality", pa.float64())])
    blank = dict.fromkeys(DOCUMENTS.names, "")
    with TableWriter(directory / "data", schema) as writer:
        writer.write(pa.RecordBatch.from_pylist([{**blank, **row} for row in rows], schema=schema))
    return artifact_of(directory, Product("llmctl.documents/1"))


@pytest.mark.parametrize(("keep", "expected"), [("longest", "b"), ("first", "a"), ("quality", "c")])
def test_which_copy_survives_is_a_rule(keep, expected, tmp_path, stage) -> None:
    words = random_words(random.Random(1), 100)
    texts = [" ".join(part) for part in (words, [*words, "more"], words[:-1], words[1:])]
    values = [0.1, None, 0.9, float("nan")]
    rows = [{"id": i, "text": text, "quality": v} for i, text, v in zip("abcd", texts, values, strict=True)]
    given = with_quality(tmp_path / "given", rows)
    _, artifact = stage(run, DedupConfig(keep=keep), given)
    assert [row["id"] for row in rows_of(artifact)] == [expected]
    assert {row["representative"] for row in clusters_of(artifact).values()} == {expected}


def test_a_column_to_keep_by_must_be_there_and_hold_numbers(documents, stage) -> None:
    given = documents([{"id": "a", "text": "one"}, {"id": "b", "text": "two"}])
    with pytest.raises(InputError, match="has no column 'qualty'"):
        stage(run, DedupConfig(keep="qualty"), given)
    with pytest.raises(InputError, match="'url' holds no numbers"):
        stage(run, DedupConfig(keep="url"), given)


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_source_that_loses_most_of_its_documents_is_named(documents, tmp_path) -> None:
    chance = random.Random(1)
    shared = [" ".join(random_words(chance, 60)) for _ in range(4)]
    rows = [{"id": f"a{n}", "source": "books", "text": text + " end"} for n, text in enumerate(shared)]
    rows += [{"id": f"b{n}", "source": "mirror", "text": text} for n, text in enumerate(shared[:3])]
    rows += [{"id": "b9", "source": "mirror", "text": " ".join(random_words(chance, 60))}]
    rows += [{"id": "c", "source": "half", "text": shared[0]}, {"id": "c2", "source": "half", "text": "something else"}]
    progress = Notes()
    job = Job(config=DedupConfig(), inputs={"input": documents(rows)}, out=tmp_path / "out", work=tmp_path / "work",
              metrics_file=tmp_path / "metrics.jsonl", progress=progress, nested=unused)  # fmt: skip
    totals = run(job).totals
    warnings = [note for note in progress.notes if note.startswith("warning")]
    assert warnings == ["warning: source 'mirror' loses 3 of 4 documents as duplicates"]
    assert (totals["sources_losing_most"], totals["sources_losing_most_names"]) == (1, "mirror")


KILLED = """
import sys
from pathlib import Path
from llmctl.config.dedup import DedupConfig
from llmctl.data.dedup import run, stage
from llmctl.pipeline.job import Job, Product, Silent
from tests.data.conftest import artifact_of, unused

if __name__ == "__main__":
    stage.THREADS_UP_TO_BYTES = 0
    given, out = Path(sys.argv[1]), Path(sys.argv[2])
    job = Job(config=DedupConfig(index=True, unit="line", workers=2), out=out / "data", work=out / "work",
              inputs={"input": artifact_of(given, Product("llmctl.documents/1"))}, progress=Silent(),
              metrics_file=out / "metrics.jsonl", nested=unused)
    for left in (out / "data").glob("*"):
        left.unlink()  # as the pipeline does when it takes a run over
    print(run(job).totals["rows_digest"])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path) -> None:
    chance = random.Random(8)
    texts = [" ".join(random_words(chance, 150)) for _ in range(300)]
    directory = tmp_path / "given" / "data"
    blank = dict.fromkeys(DOCUMENTS.names, "")
    directory.mkdir(parents=True)
    for part in range(6):
        rows = [
            {**blank, "id": f"{part}-{n}", "text": chance.choice(texts).replace(" ", "\n", n % 3)} for n in range(120)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=DOCUMENTS), directory / f"part-{part:05d}.parquet")
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def start(out: Path) -> subprocess.Popen[str]:
        out.mkdir(exist_ok=True)
        command = [sys.executable, str(script), str(tmp_path / "given"), str(out)]
        return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)

    def files(out: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (out / "data").iterdir()}

    begun = time.monotonic()
    whole, _ = start(tmp_path / "whole").communicate()
    lasted = time.monotonic() - begun
    for attempt, share in enumerate(np.linspace(0.3, 0.95, 4)):
        out = tmp_path / f"killed{attempt}"
        first = start(out)
        time.sleep(share * lasted)
        first.send_signal(signal.SIGKILL)
        first.wait()
        again = start(out)
        digest, _ = again.communicate()
        assert digest == whole
        assert files(out) == files(tmp_path / "whole")
