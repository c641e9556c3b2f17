"""Builds the corpus on which the data stages are measured: documentation that any Debian machine can have.

Debian packages are downloaded and unpacked into a working folder (nothing is installed): manuals in HTML and as
man pages, in several languages. From them come, as plain Parquet:

    html/part-*.parquet        id, text (the page's HTML), url, lang (of the package)
    documents/part-*.parquet   the columns of `documents`: extracted text, man pages, and perturbed copies
    truth.parquet              copy, original, share (of words replaced), jaccard (exact, of 5-word shingles)

    python bench/corpus.py WORK [--megabytes 220] [--copies 0.3]
"""

from __future__ import annotations

import argparse
import gzip
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from resiliparse.extract.html2text import extract_plain_text

from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import BATCH_ROWS, DOCUMENTS

# (package, language); linux-doc and rust-doc are large, the others bring languages and styles.
PACKAGES = (
    ("python3.11-doc", "en"), ("postgresql-doc-15", "en"), ("linux-doc-6.1", "en"), ("rust-doc", "en"),
    ("libreoffice-help-de", "de"), ("libreoffice-help-fr", "fr"), ("libreoffice-help-ru", "ru"),
    ("libreoffice-help-ja", "ja"), ("libreoffice-help-es", "es"), ("libreoffice-help-zh-cn", "zh"),
    ("debian-reference-de", "de"), ("debian-reference-fr", "fr"), ("debian-reference-ja", "ja"),
    ("manpages", "en"), ("manpages-dev", "en"), ("manpages-de", "de"), ("manpages-fr", "fr"), ("manpages-ru", "ru"),
    ("manpages-es", "es"), ("manpages-pl", "pl"), ("manpages-ja", "ja"),
)  # fmt: skip
SHARES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)  # of the words that a copy has replaced
ROFF = re.compile(r"""^[.'].*$|\\f.|\\[-&|^]|\\\(..|\\s[-+]?\d""", re.MULTILINE)
WORD = re.compile(r"\w+")
SHORTEST_CHARS = 200
LONGEST_HTML_BYTES = 2 << 20
HTML = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("id", "text", "url", "lang")])


def unpacked(work: Path, package: str) -> Path | None:
    """The package's files, downloaded once; None where this machine's archive has no such package."""
    place = work / "packages" / package
    if not place.exists():
        place.mkdir(parents=True)
        done = subprocess.run(["apt-get", "download", package], cwd=place, capture_output=True, check=False)
        if done.returncode:
            place.rmdir()
            print(f"left out, as apt has it not: {package}")
            return None
        (archive,) = place.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(archive), str(place)], check=True)
        archive.unlink()
    return place


def pages(work: Path) -> Iterator[tuple[Path, str, str]]:
    """(file, id, language) of every page, package by package."""
    for package, language in PACKAGES:
        place = unpacked(work, package)
        for path in sorted(place.rglob("*.htm*")) if place else ():
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= LONGEST_HTML_BYTES:
                yield path, f"{package}/{path.relative_to(place)}", language


def manuals(work: Path) -> Iterator[tuple[str, str, str]]:
    """(id, text, language) of every man page, without its roff requests."""
    for package, language in PACKAGES:
        place = unpacked(work, package) if package.startswith("manpages") else None
        for path in sorted((place / "usr/share/man").rglob("*.gz")) if place else ():
            if path.is_file() and not path.is_symlink():
                text = gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
                yield f"{package}/{path.name}", ROFF.sub("", text), language


def perturbed(text: str, share: float, words: list[str], draw: random.Random) -> str:
    """`text` with a share of its words replaced by words of the corpus."""
    spans = [match.span() for match in WORD.finditer(text)]
    chosen = sorted(draw.sample(spans, max(1, round(share * len(spans)))))
    pieces, at = [], 0
    for start, end in chosen:
        pieces += [text[at:start], draw.choice(words)]
        at = end
    return "".join([*pieces, text[at:]])


def shingles(text: str) -> set[tuple[str, ...]]:
    """Runs of five words."""
    words = WORD.findall(text.casefold())
    return set(zip(*(words[i:] for i in range(5)), strict=False))


class Corpus:
    """Writes the tables until there is enough text."""

    def __init__(self, work: Path, megabytes: float, copies: float) -> None:
        self.work = work
        self.enough = megabytes * 1e6
        self.copies = copies
        self.bytes = self.documents = 0
        self.draw = random.Random(0)
        self.words: list[str] = ["the"]
        self.truth: list[dict[str, object]] = []
        self.waiting: list[tuple[str, str, str]] = []
        self.rows: list[dict[str, str]] = []

    def build(self) -> None:
        """Pages and manuals in turn, so that every language is there however early it stops."""
        with (
            TableWriter(self.work / "html", HTML) as html,
            TableWriter(self.work / "documents", DOCUMENTS) as documents,
        ):
            for name, text, language in manuals(self.work):
                self.add(documents, name, text, language)
            found = list(pages(self.work))
            self.draw.shuffle(found)
            for start in range(0, len(found), BATCH_ROWS):
                if self.bytes >= self.enough:
                    break
                batch = [
                    (*page, page[0].read_text("utf-8", errors="replace")) for page in found[start : start + BATCH_ROWS]
                ]
                html.write_rows(
                    [{"id": n, "text": page, "url": f"file:{n}", "lang": lang} for _, n, lang, page in batch]
                )
                for _, name, language, page in batch:
                    text = extract_plain_text(page, main_content=False, alt_texts=False)
                    self.add(documents, name, text, language)
            documents.write_rows(self.rows)
        schema = pa.schema(
            [("copy", pa.string()), ("original", pa.string()), ("share", pa.float64()), ("jaccard", pa.float64())]
        )
        pq.write_table(pa.Table.from_pylist(self.truth, schema=schema), self.work / "truth.parquet")

    def add(self, documents: TableWriter, name: str, text: str, language: str) -> None:
        """One document, and maybe a perturbed copy of one that was read some time before."""
        if len(text) < SHORTEST_CHARS:
            return
        self._write(documents, name, text, language)
        self.words += self.draw.sample(found, min(5, len(found))) if (found := WORD.findall(text)) else []
        if self.draw.random() < self.copies:
            self.waiting.append((name, text, language))
        if len(self.waiting) > 50:
            original, source, language = self.waiting.pop(self.draw.randrange(len(self.waiting)))
            if len(WORD.findall(source)) < 30:
                return
            share = self.draw.choice(SHARES)
            copy = perturbed(source, share, self.words, self.draw)
            self._write(documents, f"{original}#copy", copy, language)
            one, other = shingles(source), shingles(copy)
            similarity = len(one & other) / len(one | other)
            self.truth.append({"copy": f"{original}#copy", "original": original, "share": share, "jaccard": similarity})

    def _write(self, documents: TableWriter, name: str, text: str, language: str) -> None:
        self.rows.append({"id": name, "text": text, "source": name.partition("/")[0], "lang": language})
        if len(self.rows) == BATCH_ROWS:
            documents.write_rows(self.rows)
            self.rows = []
        self.bytes += len(text.encode())
        self.documents += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--megabytes", type=float, default=220)
    parser.add_argument("--copies", type=float, default=0.3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(options.work, options.megabytes, options.copies)
    corpus.build()
    print(f"{corpus.documents:,} documents, {corpus.bytes / 1e6:,.1f} MB of text, {len(corpus.truth):,} copies")


if __name__ == "__main__":
    main()
