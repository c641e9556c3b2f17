"""The data stages beside their peers, in one go, on one corpus: extraction, rules, near-duplicate removal.

    python bench/data.py WORK --peer-python PEERS/bin/python [--megabytes 220] [--pages 2000] [--repeat 3]

WORK is filled by bench/corpus.py where it is empty. The peers' interpreter needs `datatrove[processing]==0.10.1`,
`spacy`, `rensa` and `text-dedup`; trafilatura, datasketch and Daft come with llmctl's extras. Rules:
bench/rules_parity.py. Near duplicates: bench/dedup.py. Extraction is here: pages/s of one process
by CPU time, turn by turn, of

    resiliparse    its extract_plain_text alone
    llmctl         the kernel of `clean` for HTML, from Arrow batch to Arrow batch
    trafilatura    its extract(fast=True)
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from resiliparse.extract.html2text import extract_plain_text

from llmctl.data.clean.html import HtmlToText
from llmctl.data.tables import BATCH_ROWS, DOCUMENTS, conform

HERE = Path(__file__).parent


def pages(work: Path, wanted: int) -> list[pa.RecordBatch]:
    """The first pages of the corpus as batches of documents."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted((work / "html").glob("part-*.parquet"))])
    table = table.slice(0, wanted).append_column("source", pa.array(["bench"] * min(wanted, len(table))))
    return [conform(batch, DOCUMENTS) for batch in table.combine_chunks().to_batches(max_chunksize=BATCH_ROWS)]


def each(extract: Callable[[str], object]) -> Callable[[pa.RecordBatch], None]:
    """A function of one page as a function of a batch."""

    def run(batch: pa.RecordBatch) -> None:
        for text in batch.column("text").to_pylist():
            extract(text)

    return run


def extraction(work: Path, wanted: int, repeat: int) -> None:
    """Print pages/s of each tool, with and without the page's menus."""
    import trafilatura

    batches = pages(work, wanted)
    count = sum(batch.num_rows for batch in batches)
    size = sum(len(text.encode()) for batch in batches for text in batch.column("text").to_pylist())
    print(f"extraction: {count:,} pages, {size / 1e6:.1f} MB of HTML, CPU time of one process, {repeat} runs")
    for main_content in (False, True):
        plain = each(lambda text: extract_plain_text(text, main_content=main_content, alt_texts=False))  # noqa: B023
        ours = HtmlToText("always", main_content=main_content)
        tools: dict[str, Callable[[pa.RecordBatch], object]] = {"resiliparse": plain, "llmctl": ours}
        if main_content:
            tools["trafilatura"] = each(lambda text: trafilatura.extract(text, fast=True))
        rates: dict[str, list[float]] = {name: [] for name in tools}
        for _ in range(repeat):
            for name, tool in tools.items():
                begun = time.process_time()
                for batch in batches if name != "trafilatura" else batches[:1]:
                    tool(batch)
                done = count if name != "trafilatura" else batches[0].num_rows
                rates[name].append(done / (time.process_time() - begun))
        for name, seen in rates.items():
            ratio = statistics.median(seen) / statistics.median(rates["resiliparse"])
            spread = f"{min(seen):,.0f} to {max(seen):,.0f}"
            print(
                f"  main_content={main_content} {name}: {statistics.median(seen):,.0f} pages/s ({spread}), {ratio:.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--megabytes", type=float, default=220)
    parser.add_argument("--pages", type=int, default=2000)
    parser.add_argument("--documents", type=int, default=1000, help="of the rules' comparison")
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    work, python = str(given.work), sys.executable
    if not (given.work / "truth.parquet").exists():
        subprocess.run([python, HERE / "corpus.py", work, "--megabytes", str(given.megabytes)], check=True)
    extraction(given.work, given.pages, given.repeat)
    rules = ["--peer-python", given.peer_python, "--documents", str(given.documents)]
    subprocess.run([python, HERE / "rules_parity.py", work, *rules], check=True)
    near = ["--peer-python", given.peer_python, "--repeat", str(given.repeat)]
    subprocess.run([python, HERE / "dedup.py", work, *near], check=True)


if __name__ == "__main__":
    main()
