"""The peers of bench/dedup.py, each as good as we could make it: `dedup_peers.py TOOL FOLDER OUT`.

This file imports nothing of llmctl, so that it runs in an interpreter that has only the peer.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORD = re.compile(r"\w+")
PERMUTATIONS, BANDS, ROWS, WORDS, SEED = 144, 24, 6, 5, 1  # llmctl's bands for 0.8 with up to 160
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def mix(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(32))) * MULTIPLIER
    return values ^ (values >> np.uint64(29))


def rensa_signatures(path: Path) -> np.ndarray:
    """Shingle hashes in NumPy, one xxh64 for each distinct word; then rensa's matrix."""
    import xxhash
    from rensa import RMinHash

    known: dict[str, int] = {}
    found, offsets = [], [0]
    for text in pq.read_table(path, columns=["text"])["text"].to_pylist():
        words = WORD.findall(text.casefold())
        for word in words:
            if word not in known:
                known[word] = xxhash.xxh64_intdigest(word.encode())
        hashes = np.fromiter(map(known.__getitem__, words), dtype=np.uint64, count=len(words))
        n = min(WORDS, len(words))
        combined = np.zeros(max(len(words) - n + 1, 0) if n else 0, dtype=np.uint64)
        for position in range(n):
            combined = mix(combined * MULTIPLIER + hashes[position : position + len(combined)])
        found.append(combined)
        offsets.append(offsets[-1] + len(combined))
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(found), np.array(offsets, dtype=np.uint64), PERMUTATIONS, SEED
    )
    return np.array(matrix.to_rows(), dtype=np.uint32)


def datasketch_signatures(path: Path) -> np.ndarray:
    """`MinHash.bulk` over encoded 5-word strings, xxh32."""
    import xxhash
    from datasketch import MinHash

    sets = []
    for text in pq.read_table(path, columns=["text"])["text"].to_pylist():
        words = WORD.findall(text.casefold())
        sets.append({" ".join(words[i : i + WORDS]).encode() for i in range(max(len(words) - WORDS + 1, 1))})
    made = MinHash.bulk(sets, num_perm=PERMUTATIONS, seed=SEED, hashfunc=xxhash.xxh32_intdigest)
    return np.array([one.hashvalues for one in made], dtype=np.uint32)


def components(signatures: np.ndarray) -> np.ndarray:
    """Label of each document: those that share a band are one."""
    from_, to = [], []
    for band in range(BANDS):
        key = np.zeros(len(signatures), dtype=np.uint64)
        for column in range(band * ROWS, (band + 1) * ROWS):
            key = mix(key + signatures[:, column])
        order = np.argsort(key, kind="stable")
        same = np.flatnonzero(key[order][1:] == key[order][:-1])
        from_.append(order[same])
        to.append(order[same + 1])
    return labels_of(len(signatures), np.concatenate(from_), np.concatenate(to))


def labels_of(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Connected components, the smallest document of each as its label."""
    labels = np.arange(count)
    while True:
        low = np.minimum(labels[one], labels[other])
        new = labels.copy()
        np.minimum.at(new, one, low)
        np.minimum.at(new, other, low)
        new = new[new]
        if np.array_equal(new, labels):
            return labels
        labels = new


def by_signatures(signatures, folder: Path, out: Path) -> None:  # noqa: ANN001
    paths = sorted(folder.glob("part-*.parquet"))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        values = np.concatenate(list(pool.map(signatures, paths)))
    labels = components(values)
    kept = labels == np.arange(len(labels))
    start = 0
    for path in paths:
        table = pq.read_table(path)
        mask = pa.array(kept[start : start + len(table)])
        pq.write_table(table.filter(mask), out / path.name, compression="zstd")
        start += len(table)


def daft_plan(folder: Path, out: Path) -> None:
    """Everything in Daft's expressions but the components, as its own documentation does it."""
    import daft
    from daft import col
    from daft.functions import hash, lower, minhash, monotonically_increasing_id, regexp_replace, slice  # noqa: A004

    frame = daft.read_parquet(str(folder / "part-*.parquet"))
    frame = frame.with_column("row", monotonically_increasing_id()).collect()
    text = lower(regexp_replace(col("text"), r"[^\w]+", " ")).lstrip().rstrip()
    signed = frame.select(
        "row",
        minhash(text, num_hashes=PERMUTATIONS, ngram_size=WORDS, seed=SEED, hash_function="xxhash3_64").alias("s"),
    )
    bands = [hash(slice(col("s"), band * ROWS, (band + 1) * ROWS)) for band in range(BANDS)]
    keys = signed.select("row", *(key.alias(f"b{band}") for band, key in enumerate(bands))).collect()
    one, other = [], []
    for band in range(BANDS):
        named = keys.select(col(f"b{band}").alias("key"), "row")
        grouped = named.groupby("key").agg(col("row").list_agg().alias("rows"), col("row").count().alias("count"))
        for rows in grouped.where(col("count") > 1).to_pydict()["rows"]:
            first = min(rows)
            one += [first] * (len(rows) - 1)
            other += [row for row in rows if row != first]
    names = np.unique(np.array(one + other, dtype=np.int64))
    labels = labels_of(len(names), np.searchsorted(names, one), np.searchsorted(names, other))
    gone = names[labels != np.arange(len(names))]
    removed = daft.from_pydict({"row": daft.Series.from_numpy(gone.astype(np.uint64))})
    frame.join(removed, on="row", how="anti").exclude("row").write_parquet(str(out), compression="zstd")
    for number, path in enumerate(sorted(out.glob("*.parquet"))):
        path.rename(out / f"part-{number:05d}.parquet")


def datatrove_pipeline(folder: Path, out: Path) -> None:
    """Datatrove's four steps on its own executors; its tokenizer, and shingles of xxh64 in place of SHA-1."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.text import TextNormConfig

    config = MinhashConfig(
        n_grams=WORDS, num_buckets=BANDS, hashes_per_bucket=ROWS, seed=SEED,
        norm_config=TextNormConfig(norm_numbers=False), hash_config=HashConfig(hash_fc="xxhash", precision=64),
    )  # fmt: skip
    parts = len(list(folder.glob("part-*.parquet")))
    work = out.with_name(out.name + "-work")
    shutil.rmtree(work, ignore_errors=True)
    signatures, buckets, removed = (str(work / name) for name in ("signatures", "buckets", "removed"))
    steps = (
        ([ParquetReader(str(folder), glob_pattern="part-*.parquet"), MinhashDedupSignature(signatures, config)], parts),
        ([MinhashDedupBuckets(signatures, buckets, config=config)], BANDS),
        ([MinhashDedupCluster(buckets, removed, config)], 1),
        (
            [
                ParquetReader(str(folder), glob_pattern="part-*.parquet"),
                MinhashDedupFilter(removed),
                ParquetWriter(str(out), "part-${rank}.parquet", compression="zstd", max_file_size=-1),
            ],
            parts,
        ),
    )
    for pipeline, tasks in steps:
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=2, skip_completed=False).run()
    shutil.rmtree(work)


def text_dedup_script(folder: Path, out: Path) -> None:
    """text-dedup's own script with its quicker hash; what it keeps is then copied from Arrow to Parquet."""
    import datasets

    work = out.with_name(out.name + "-work")
    shutil.rmtree(work, ignore_errors=True)
    given = {
        "path": "parquet", "data_files": str(folder / "part-*.parquet"), "split": "train", "column": "text",
        "cache_dir": str(work / "cache"), "output": str(work / "kept"), "num_proc": "2", "seed": str(SEED),
        "ngram": str(WORDS), "num_perm": str(PERMUTATIONS), "b": str(BANDS), "r": str(ROWS), "min_length": "0",
        "hash_func": "xxh3", "hash_bits": "32",
    }  # fmt: skip
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    subprocess.run([sys.executable, "-m", "text_dedup.minhash", *options], check=True)
    datasets.load_from_disk(str(work / "kept")).to_parquet(str(out / "part-00000.parquet"))
    shutil.rmtree(work)


def main() -> None:
    tool, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    plans = {"daft": daft_plan, "datatrove": datatrove_pipeline, "text-dedup": text_dedup_script}
    if tool in plans:
        plans[tool](folder, out)
    else:
        by_signatures({"rensa": rensa_signatures, "datasketch": datasketch_signatures}[tool], folder, out)


if __name__ == "__main__":
    main()
