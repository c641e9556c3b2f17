"""Near-duplicate removal, read to write, beside its peers, on one corpus of known truth.

The corpus is what bench/corpus.py wrote: documentation, and copies of it in which a known share of the words is
replaced. Every tool reads the same Parquet parts and writes what it keeps; its wall time is that of its whole
process, start-up included. All use 5-word shingles of case-folded words and the bands and rows that llmctl takes
(datatrove splits words with its own tokenizer). rensa, datatrove and text-dedup may live in another interpreter; those
that take minutes run once.

    python bench/dedup.py WORK --peer-python PEERS/bin/python --repeat 3
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

RARE = np.uint64(8)  # one shingle in so many is enough for two documents with J >= 0.5 to meet
PEERS = ("daft", "rensa", "datasketch", "datatrove", "text-dedup")
ELSEWHERE = {"rensa", "datatrove", "text-dedup"}
ONCE = {"datasketch", "datatrove", "text-dedup"}


def make(directory: Path) -> None:
    """The corpus as an artifact, collected once; the cache has it afterwards."""
    llmctl(directory, "collect", str(directory / "documents"), "--name", "corpus", "-q")


def llmctl(directory: Path, *words: str) -> str:
    command = [sys.executable, "-m", "llmctl", *words, "--store", str(directory / "dedup-store")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def parts(directory: Path, name: str) -> list[Path]:
    """The data parts of the newest artifact of that name."""
    pointer = json.loads((directory / "dedup-store" / name / "refs" / "latest.json").read_bytes())
    return sorted((directory / "dedup-store" / pointer["run"] / "data").glob("part-*.parquet"))


def timed(directory: Path, tool: str, peer_python: str) -> tuple[float, Path]:
    """(seconds, folder of what the tool kept) of one run."""
    out = directory / f"kept-{tool}"
    begun = time.perf_counter()
    if tool == "llmctl":
        llmctl(directory, "dedup", "corpus", "--force", "-q")
        return time.perf_counter() - begun, parts(directory, "corpus.dedup")[0].parent
    python = peer_python if tool in ELSEWHERE else sys.executable
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
        caught = sum(not {row["copy"], row["original"]} <= stays for row in pairs)
        result[f"recall {low}-{min(high, 1.0)}"] = caught / len(pairs)
    ids = table["id"].to_pylist()
    found = shingles(normalise(table["text"].combine_chunks()), 5).sets()
    place = {name: number for number, name in enumerate(ids)}
    gone = [number for number, name in enumerate(ids) if name not in stays]
    best = nearest(found, gone, [place[name] for name in stays], ShingleSets(found))
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


def measure(directory: Path, tools: list[str], peer_python: str, repeat: int) -> None:
    given = parts(directory, "corpus")
    rows = sum(pq.read_metadata(path).num_rows for path in given)
    size = sum(pc.sum(pc.binary_length(pq.read_table(path, columns=["text"])["text"])).as_py() for path in given)
    seconds: dict[str, list[float]] = {tool: [] for tool in tools}
    processor = dict.fromkeys(tools, 0.0)
    kept: dict[str, Path] = {}
    for turn in range(repeat):  # turn by turn, so that a busy minute meets all of them
        for tool in tools:
            if turn and tool in ONCE:
                continue
            before = used()
            took, kept[tool] = timed(directory, tool, peer_python)
            processor[tool] += used() - before
            seconds[tool].append(took)
    for tool in tools:
        middle = statistics.median(seconds[tool])
        shown = ", ".join(f"{name} {value:.3f}" for name, value in quality(directory, kept[tool]).items())
        spread = " ".join(f"{value:.2f}" for value in seconds[tool])
        print(
            f"{tool}: {middle:.2f} s ({spread}), {rows / middle:,.0f} documents/s, {size / middle / 1e6:.1f} MB/s, "
            f"{processor[tool] / len(seconds[tool]):.1f} CPU s"
        )
        print(f"    {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="where bench/corpus.py wrote its corpus")
    parser.add_argument("--peer-python", default=sys.executable, help="one with rensa, datatrove and text-dedup")
    parser.add_argument("--tools", nargs="*", default=["llmctl", *PEERS])
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    make(given.work)
    measure(given.work, given.tools, given.peer_python, given.repeat)


if __name__ == "__main__":
    main()
