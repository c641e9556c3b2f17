"""Near-duplicate removal, read to write, beside its peers, on one corpus of known truth.

The corpus is cut from the manuals and documentation of this machine; to it come copies in which a known share of
the words is replaced. Every tool reads the same Parquet parts and writes what it keeps; its wall time is that of
its whole process, start-up included. All use 5-word shingles of case-folded words and the bands and rows that
llmctl takes. rensa may live in another interpreter (--rensa).

    python bench/dedup.py make --directory /tmp/dedup --documents 40000
    python bench/dedup.py measure --directory /tmp/dedup --rensa peers/bin/python --repeat 3
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SOURCES = {
    "manual": (Path("/usr/share/man"), "**/*.gz"),
    "debian": (Path("/usr/share/doc"), "**/*"),
    "python": (Path(sysconfig.get_path("stdlib")), "**/*.py"),
    "packages": (Path(sysconfig.get_path("purelib")), "**/*.[mrtp][dsxy]*"),
}
SHORTEST, LONGEST = 1500, 7000  # characters of a document
COPY_EVERY = 4
CHANGES = (0.0, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1)  # shares of words replaced
WORD = re.compile(r"\w+")
RARE = np.uint64(8)  # one shingle in so many is enough for two documents with J >= 0.5 to meet
PEERS = ("daft", "rensa", "datasketch")


def texts() -> Iterator[tuple[str, str]]:
    """(source, text) of every file that reads as UTF-8."""
    for source, (root, pattern) in SOURCES.items():
        for path in sorted(root.glob(pattern)):
            if not path.is_file() or path.suffix not in {"", ".gz", ".md", ".rst", ".txt", ".py", ".html"}:
                continue
            try:
                data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                yield source, data.decode()
            except (OSError, UnicodeDecodeError, EOFError, gzip.BadGzipFile):
                continue


def documents(chance: random.Random, wanted: int) -> list[dict[str, str]]:
    """Pieces of the files, cut at line ends."""
    found = []
    for source, text in texts():
        start = 0
        while start + SHORTEST < len(text):
            end = text.find("\n", start + chance.randrange(SHORTEST, LONGEST))
            end = len(text) if end < 0 else end + 1
            if end - start < 2 * LONGEST:
                found.append({"source": source, "text": text[start:end]})
            start = end
    chance.shuffle(found)
    return [{"id": f"d{number}", **row} for number, row in enumerate(found[:wanted])]


def jaccard(one: str, other: str) -> float:
    """Of the sets of 5-word tuples, without hashing."""
    sets = []
    for text in (one, other):
        words = WORD.findall(text.casefold())
        sets.append(set(zip(*(words[i:] for i in range(5)), strict=False)) or {tuple(words)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def altered(text: str, share: float, chance: random.Random) -> str:
    """`text` with this share of its words replaced."""
    return WORD.sub(lambda word: f"x{chance.randrange(10**6)}" if chance.random() < share else word[0], text)


def make(directory: Path, wanted: int) -> None:
    chance = random.Random(7)
    rows = documents(chance, wanted)
    truth = []
    for number, row in enumerate(rows[::COPY_EVERY]):
        text = altered(row["text"], CHANGES[number % len(CHANGES)], chance) + "\n"
        copy = {"id": f"c{number}", "source": "copies", "text": text}
        truth.append({"one": row["id"], "other": copy["id"], "jaccard": jaccard(row["text"], text)})
        rows.append(copy)
    chance.shuffle(rows)
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "corpus.jsonl", "w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows)
    pq.write_table(pa.Table.from_pylist(truth), directory / "truth.parquet")
    llmctl(directory, "collect", str(directory / "corpus.jsonl"), "--name", "corpus", "-q")
    size = sum(len(row["text"].encode()) for row in rows)
    print(f"{len(rows)} documents, {size / 1e6:.1f} MB, {len(truth)} copies")


def llmctl(directory: Path, *words: str) -> str:
    command = [sys.executable, "-m", "llmctl", *words, "--store", str(directory / "store")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def parts(directory: Path, name: str) -> list[Path]:
    """The data parts of the newest artifact of that name."""
    pointer = json.loads((directory / "store" / name / "refs" / "latest.json").read_bytes())
    return sorted((directory / "store" / pointer["run"] / "data").glob("part-*.parquet"))


def timed(directory: Path, tool: str, rensa: str) -> tuple[float, Path]:
    """(seconds, folder of what the tool kept) of one run."""
    out = directory / f"kept-{tool}"
    begun = time.perf_counter()
    if tool == "llmctl":
        llmctl(directory, "dedup", "corpus", "--force", "-q")
        return time.perf_counter() - begun, parts(directory, "corpus.dedup")[0].parent
    python = rensa if tool == "rensa" else sys.executable
    script = Path(__file__).with_name("dedup_peers.py")
    subprocess.run([python, str(script), tool, str(parts(directory, "corpus")[0].parent), str(out)], check=True)
    return time.perf_counter() - begun, out


def quality(directory: Path, kept: Path) -> dict[str, float]:
    """Recall over planted pairs, and precision over what went, by exact Jaccard with anything that stays."""
    from llmctl.data.dedup.kernel import normalise, shingles
    from llmctl.data.dedup.sets import ShingleSets

    table = pa.concat_tables([pq.read_table(path, columns=["id", "text"]) for path in parts(directory, "corpus")])
    stays = set(pa.concat_tables([pq.read_table(p, columns=["id"]) for p in kept.glob("part-*")])["id"].to_pylist())
    result = {"kept": float(len(stays))}
    truth = pq.read_table(directory / "truth.parquet").to_pylist()
    for low, high in ((0.8, 0.85), (0.85, 0.9), (0.9, 1.01), (0.8, 1.01)):
        pairs = [row for row in truth if low <= row["jaccard"] < high]
        caught = sum(not {row["one"], row["other"]} <= stays for row in pairs)
        result[f"recall {low}-{min(high, 1.0)}"] = caught / len(pairs)
    ids = table["id"].to_pylist()
    found = shingles(normalise(table["text"].combine_chunks()), 5).sets()
    place = {name: number for number, name in enumerate(ids)}
    gone = [number for number, name in enumerate(ids) if name not in stays]
    best = nearest(found, gone, [place[name] for name in stays], ShingleSets([found]))
    for threshold in (0.5, 0.7, 0.8):
        result[f"precision J>={threshold}"] = float(np.mean(best >= threshold))
    return result


def nearest(found, gone: list[int], stays: list[int], sets) -> np.ndarray:  # noqa: ANN001
    """Each removed document's largest exact Jaccard with one that stays, among those that share a rare shingle."""
    labels = np.repeat(np.arange(len(found)), found.lengths())
    stays_mask = np.zeros(len(found), dtype=bool)
    stays_mask[stays] = True
    keep = stays_mask[labels] & (found.hashes % RARE == 0)
    hashes, owners = found.hashes[keep], labels[keep]
    order = np.argsort(hashes)
    hashes, owners = hashes[order], owners[order]
    best = np.zeros(len(gone))
    for place, document in enumerate(gone):
        own = found.hashes[found.offsets[document] : found.offsets[document + 1]]
        own = own[own % RARE == 0]
        low, high = np.searchsorted(hashes, own), np.searchsorted(hashes, own, side="right")
        near = np.concatenate([owners[a:b] for a, b in zip(low, high, strict=True)]) if len(own) else []
        others, counts = np.unique(near, return_counts=True)
        others = others[np.argsort(-counts)][:20].astype(np.int64)
        pairs = np.stack((np.full(len(others), document), others), axis=1)
        best[place] = sets.jaccard(pairs, 0.0).max(initial=0.0)
    return best


def used() -> float:
    """CPU seconds of all processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def measure(directory: Path, tools: list[str], rensa: str, repeat: int) -> None:
    rows = sum(pq.read_metadata(path).num_rows for path in parts(directory, "corpus"))
    size = (directory / "corpus.jsonl").stat().st_size
    seconds: dict[str, list[float]] = {tool: [] for tool in tools}
    processor = dict.fromkeys(tools, 0.0)
    kept: dict[str, Path] = {}
    for _ in range(repeat):  # turn by turn, so that a busy minute meets all of them
        for tool in tools:
            before = used()
            took, kept[tool] = timed(directory, tool, rensa)
            processor[tool] += (used() - before) / repeat
            seconds[tool].append(took)
    for tool in tools:
        middle = statistics.median(seconds[tool])
        shown = ", ".join(f"{name} {value:.3f}" for name, value in quality(directory, kept[tool]).items())
        spread = " ".join(f"{value:.2f}" for value in seconds[tool])
        print(
            f"{tool}: {middle:.2f} s ({spread}), {rows / middle:,.0f} documents/s, {size / middle / 1e6:.1f} MB/s, "
            f"{processor[tool]:.1f} CPU s"
        )
        print(f"    {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["make", "measure"])
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=40_000, help="originals; a quarter as many copies are added")
    parser.add_argument("--rensa", default=sys.executable, help="an interpreter that has rensa")
    parser.add_argument("--tools", nargs="*", default=["llmctl", *PEERS])
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    if given.action == "make":
        make(given.directory, given.documents)
    else:
        measure(given.directory, given.tools, given.rensa, given.repeat)


if __name__ == "__main__":
    main()
