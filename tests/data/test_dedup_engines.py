"""The same groups and the same artifact whoever does the work: NumPy or Daft, threads, processes or a cluster."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.config.base import Config
from llmctl.config.clean import CleanConfig
from llmctl.config.collect import CollectConfig
from llmctl.config.dedup import DedupConfig
from llmctl.config.errors import InputError
from llmctl.config.mix import MixConfig
from llmctl.data import clean, collect, mix
from llmctl.data.collect import tasks
from llmctl.data.dedup import run, sets, stage
from llmctl.data.dedup.groups import NumpyGrouping
from llmctl.data.dedup.keys import KEYS_FILE, Keys, key_schema
from llmctl.pipeline.job import Product
from llmctl.store.artifact import Artifact
from tests.data.conftest import artifact_of, job_of
from tests.data.test_dedup import clusters_of, random_words


def keys_of(directory: Path, documents: list[tuple[int, int, bool]], parts: int) -> Keys:
    """Keys of documents of which (exact key, band key, emptied) are given, dealt out over parts."""
    schema, files, counts = key_schema(2), [], []
    for number, share in enumerate(np.array_split(np.arange(len(documents)), parts)):
        rows = [documents[place] for place in share.tolist()]
        columns = {
            "part": [number] * len(rows), "row": list(range(len(rows))), "id": [f"{number}-{n}" for n in share],
            "source": [""] * len(rows), "length": [1] * len(rows), "value": [0.0] * len(rows),
            "emptied": [emptied for *_, emptied in rows], "shingled": [band > 0 for _, band, _ in rows],
            "exact_low": [exact % 3 for exact, *_ in rows], "exact_high": [exact for exact, *_ in rows],
            "band000": [band for _, band, _ in rows], "band001": [2**64 - 1 - band % 2 for _, band, _ in rows],
        }  # fmt: skip
        path = directory / f"{number}-{KEYS_FILE}"
        pq.write_table(pa.table(columns, schema=schema), path)
        files.append(path)
        counts.append(len(rows))
    return Keys(files, counts, "first")


def as_lists(groups) -> list[list[int]]:
    return [group.tolist() for group in groups]


documents_ = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.booleans()), min_size=1, max_size=20)


@given(documents_, st.integers(1, 3), st.integers(0, 2**20))
@settings(max_examples=50)
def test_numpy_groups_are_those_of_a_dictionary(tmp_path_factory, given, parts, gone) -> None:
    keys = keys_of(tmp_path_factory.mktemp("keys"), given, parts)
    by_key: dict[int, list[int]] = {}
    for place, (exact, _, emptied) in enumerate(given):
        if not emptied:
            by_key.setdefault(exact, []).append(place)
    expected = [group for _, group in sorted(by_key.items(), key=lambda item: (item[0] % 3, item[0])) if len(group) > 1]
    assert as_lists(NumpyGrouping().exact(keys)) == expected
    among = np.array([not gone >> place & 1 for place in range(len(given))])
    by_band: dict[int, list[int]] = {}
    for place, (_, band, _) in enumerate(given):
        if band and among[place]:
            by_band.setdefault(band, []).append(place)
    first, _ = NumpyGrouping().near(keys, 2, among)
    assert as_lists(first) == [group for _, group in sorted(by_band.items()) if len(group) > 1]


@pytest.mark.parametrize("seed", [1, 2])
def test_daft_groups_are_those_of_numpy(tmp_path, seed) -> None:
    from llmctl.data.dedup.daft_groups import DaftGrouping

    chance = random.Random(seed)
    documents = [(chance.randrange(40), chance.randrange(30), chance.random() < 0.1) for _ in range(200)]
    keys = keys_of(tmp_path, documents, 3)
    among = np.array([chance.random() < 0.8 for _ in documents])
    assert as_lists(DaftGrouping().exact(keys)) == as_lists(NumpyGrouping().exact(keys))
    for mask in (among, np.ones_like(among)):
        ours, theirs = (grouping.near(keys, 2, mask) for grouping in (NumpyGrouping(), DaftGrouping()))
        assert [as_lists(groups) for groups in ours] == [as_lists(groups) for groups in theirs]
        assert len(ours[0]) > 10


@pytest.fixture
def corpus(tmp_path: Path, documents: Callable) -> Artifact:
    """Four parts with exact and near copies within and across them."""
    chance = random.Random(3)
    rows = []
    for number in range(60):
        words = random_words(chance, 120)
        near = [f"x{number}" if place == 60 else word for place, word in enumerate(words)]
        rows += [(f"{number}", words), (f"{number}-near", near[:-1])] + (
            [(f"{number}-same", words)] * (number % 3 == 0)
        )
    chance.shuffle(rows)
    given = documents([{"id": name, "text": " ".join(words)} for name, words in rows])
    table = pq.read_table(given.file("part-00000.parquet"))
    directory = tmp_path / "parts" / "data"
    directory.mkdir(parents=True)
    for number, share in enumerate(np.array_split(np.arange(len(table)), 4)):
        pq.write_table(table.take(share), directory / f"part-{number:05d}.parquet")
    return artifact_of(directory.parent, Product("llmctl.documents/1"))


def fingerprint(artifact: Artifact) -> list[tuple[str, str]]:
    return [(entry.path, entry.sha256) for entry in artifact.manifest.files]


def test_threads_and_processes_give_the_same_bytes(corpus, stage_, monkeypatch) -> None:
    _, first = stage_(run, DedupConfig(workers=1, index=True), corpus)
    _, threads = stage_(run, DedupConfig(workers=3, index=True), corpus)
    monkeypatch.setattr(stage, "THREADS_UP_TO_BYTES", 0)
    monkeypatch.setattr(sets, "HELD_IN_MEMORY", 0)  # as a large corpus
    monkeypatch.setattr(sets, "HASHES_AT_ONCE", 500)
    _, processes = stage_(run, DedupConfig(workers=2, index=True), corpus)
    assert fingerprint(first) == fingerprint(threads) == fingerprint(processes)
    assert len(clusters_of(first)) == 80


@pytest.fixture
def stage_(stage: Callable) -> Callable:
    return stage


ON_RAY = """
import sys
from pathlib import Path
import ray
from llmctl.config.dedup import DedupConfig
from llmctl.config.errors import InputError
from llmctl.config.engine import EngineConfig
from llmctl.data.dedup import run
from llmctl.data.workers import open_workers
from llmctl.pipeline.job import Job, Product, Silent
from tests.data.conftest import artifact_of, unused
from tests.data.test_dedup_engines import node_of, other_stages, refuse

corpus, out, address = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
config = DedupConfig(index=True, engine="ray", ray_address=address)
job = Job(config=config, inputs={"input": artifact_of(corpus, Product("llmctl.documents/1"))}, out=out / "data",
          work=out / "work", metrics_file=out / "metrics.jsonl", progress=Silent(), nested=unused)
print("ROWS", run(job).totals["rows_digest"])
for name, digest in other_stages(job.inputs["input"], out / "others", engine="ray", ray_address=address).items():
    print(name, digest)
workers = open_workers(EngineConfig(engine="ray", ray_address=address))
found = list(workers.map(node_of, range(8)))
print("ORDER", [number for number, _ in found], "NODES", len({node for _, node in found}))
try:
    list(workers.map(refuse, [1, 2]))
except Exception as error:
    print("ERROR", type(error).__name__, error, error.hint)
"""


def other_stages(corpus: Artifact, directory: Path, **engine: Any) -> dict[str, str]:
    """The `rows_digest` of what collect, clean and mix make of the corpus, in several tasks each."""
    folder = directory / "texts"
    folder.mkdir(parents=True)
    for part in corpus.files(suffix=".parquet"):
        texts = pq.read_table(part, columns=["text"]).to_pylist()
        lines = [{"text": f"{row['text']} mail{number}@example.org"} for number, row in enumerate(texts)]
        (folder / f"{part.stem}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    digests: dict[str, str] = {}

    def made(name: str, body: Callable, config: Config, **roles: Artifact) -> Artifact:
        place = directory / name
        place.mkdir()
        product = body(job_of(config, place, **roles))
        digests[name] = str(product.totals["rows_digest"])
        return artifact_of(place, product)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "GROUP_BYTES", 1)  # a task a file
        collected = made("collect", collect.run, CollectConfig(sources=(str(folder),), **engine))
    off = {"enabled": False}
    asked = CleanConfig(quality=off, repetition=off, boilerplate={"enabled": True}, pii={"action": "redact"}, **engine)
    cleaned = made("clean", clean.run, asked, given=collected)
    mixture = MixConfig(weights={"raw": 1, "clean": 2}, heldout_fraction=0.1, **engine)
    made("mix", mix.run, mixture, **{"sources.raw": corpus, "sources.clean": cleaned})
    return digests


def node_of(task: int) -> tuple[int, str]:
    import ray

    time.sleep(0.5)
    return task, ray.get_runtime_context().get_node_id()


def refuse(task: int) -> None:
    raise InputError(f"{task} is bad", hint="mend it")


@pytest.mark.slow
def test_two_ray_nodes_give_the_same_bytes(corpus, stage_, tmp_path) -> None:
    """In a process of its own, since Daft takes one runner for a process."""
    from ray.cluster_utils import Cluster

    _, native = stage_(run, DedupConfig(index=True), corpus)
    others = other_stages(corpus, tmp_path / "native", workers=1)
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    os.environ["PYTHONPATH"] = environ["PYTHONPATH"]  # for the nodes
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        (tmp_path / "remote").mkdir()
        command = [sys.executable, "-c", ON_RAY, str(corpus.path), str(tmp_path / "remote"), cluster.address]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=500, check=False)
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stderr[-3000:]
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert said["ROWS"] == native.manifest.totals["rows_digest"]
    assert {name: said[name] for name in others} == others
    assert len(set(others.values())) == 3
    assert said["ORDER"] == "[0, 1, 2, 3, 4, 5, 6, 7] NODES 2"
    assert said["ERROR"] == "InputError 1 is bad mend it"
    remote = artifact_of(tmp_path / "remote", Product("llmctl.documents/1"))
    assert fingerprint(remote) == fingerprint(native)
