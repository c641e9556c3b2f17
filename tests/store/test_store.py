from __future__ import annotations

import errno
import hashlib
import json
import math
import multiprocessing
import os
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmctl.config.errors import InputError, IntegrityError, LockedError, UsageError
from llmctl.store.artifact import Artifact, FileInput
from llmctl.store.files import explained, publish, publish_bytes
from llmctl.store.layout import check_name, index_file
from llmctl.store.lineage import trace
from llmctl.store.manifest import FileEntry, InputEntry, Manifest, Producer, RunInfo, content_digest, sha256_of
from llmctl.store.refs import Pointer, parse_ref, versions
from llmctl.store.store import Store, describe_files
from llmctl.store.verify import verify_store

SCHEMA = Path(__file__).parents[2] / "llmctl" / "store" / "manifest.schema.json"


def commit(
    store: Store, name: str, run_id: str, content: bytes = b"hello", inputs: dict[str, Artifact] | None = None
) -> Artifact:
    """Publish one artifact with one file."""
    run, lock = store.begin(name, run_id)
    with lock:
        publish_bytes(run.data / "part-00000.txt", content)
        files = describe_files(run)
        manifest = Manifest(
            kind="documents",
            schema="llmctl.documents/1",
            digest=content_digest("documents", "llmctl.documents/1", {}, files),
            files=files,
            totals={"documents": 1},
            semantic={},
            producer=Producer(
                command="test",
                op_version=1,
                llmctl="0",
                argv=[],
                config={},
                action_key=sha256_of([name, run_id, content.hex()]),
            ),
            inputs={role: given.as_input() for role, given in (inputs or {}).items()},
            run=RunInfo(id=run_id, started="2026-01-01T00:00:00Z", finished="2026-01-01T00:00:01Z", host="h"),
            license=["MIT"],
        )
        pointer = store.commit(run, manifest)
    return store.publish_version(name, pointer)


def test_commit_and_resolve(store: Store) -> None:
    first = commit(store, "web", "01A", b"one")
    second = commit(store, "web", "01B", b"two")
    assert (first.ref, second.ref) == ("web@v1", "web@v2")
    assert store.resolve("web").digest == second.digest
    assert store.resolve("web@v1").digest == first.digest
    assert store.resolve(f"web@{first.digest[:19]}").ref == "web@v1"
    assert store.resolve(str(first.path)).digest == first.digest
    assert store.find(second.digest).ref == "web@v2"
    assert (first.data / "part-00000.txt").read_bytes() == b"one"


def test_digest_is_of_the_content_only(store: Store) -> None:
    assert commit(store, "a", "01A").digest == commit(store, "b", "01B").digest
    entry = FileEntry(path="data/x", bytes=5, sha256=hashlib.sha256(b"hello").hexdigest(), rows=3)
    assert content_digest("k", "s", {}, [entry]) == content_digest("k", "s", {}, [entry.model_copy(update={"rows": 9})])
    assert content_digest("k", "s", {}, [entry]) != content_digest("k", "s", {"dtype": "uint16"}, [entry])


def test_published_files_are_read_only(store: Store) -> None:
    artifact = commit(store, "web", "01A")
    assert (artifact.data / "part-00000.txt").stat().st_mode & 0o222 == 0
    assert (artifact.path / "manifest.json").stat().st_mode & 0o222 == 0


def test_a_run_without_a_manifest_is_invisible(store: Store) -> None:
    run, lock = store.begin("web", "01A")
    with lock:
        publish_bytes(run.data / "part-00000.txt", b"x")
    with pytest.raises(InputError, match="no artifact is called 'web'"):
        store.resolve("web")
    assert store.names() == []


def test_a_live_run_cannot_be_taken_over(store: Store) -> None:
    _, lock = store.begin("web", "01A")
    with lock, pytest.raises(LockedError, match="01A"):
        Store(store.root).begin("web", "01A")


@pytest.mark.parametrize(
    "ref",
    [
        "web@v0",
        "web@sha256:12",
        "web@",
        "../web",
        "a b",
        "index",
        "web@v1x",
        "web\n",
        "web@v1\n",
        "web@sha256:" + "0" * 12 + "\n",
    ],
)
def test_bad_references(store: Store, ref: str) -> None:
    commit(store, "web", "01A")
    with pytest.raises((UsageError, InputError), match="not an artifact name|not a reference|not a run directory"):
        store.resolve(ref)


@given(st.text(max_size=12))
def test_no_name_leaves_the_store(name: str) -> None:
    try:
        check_name(name)
    except UsageError:
        return
    assert Path("/store", name).resolve().parent == Path("/store")
    assert parse_ref(name).name == name


def test_unknown_version_names_the_known_ones(store: Store) -> None:
    commit(store, "web", "01A")
    with pytest.raises(InputError, match=r"web@v7 does not exist; web has v1"):
        store.resolve("web@v7")


def test_opening_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no store"):
        Store.open(tmp_path / "none")
    with pytest.raises(UsageError, match="local directory"):
        Store.open("s3://bucket/store", create=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "store.json").write_text("{}")
    with pytest.raises(IntegrityError, match="store.json"):
        Store.open(tmp_path / "other")


def test_verify_names_every_flipped_bit(store: Store) -> None:
    artifacts = [commit(store, f"n{i}", f"01{i}", bytes([i]) * 100) for i in range(5)]
    assert verify_store(store, full=True) == (5, [])
    for artifact in artifacts:
        path = artifact.data / "part-00000.txt"
        path.chmod(0o644)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    checked, faults = verify_store(store, full=True)
    assert checked == 5
    assert [fault.what for fault in faults] == ["data/part-00000.txt does not match its sha256"] * 5
    assert verify_store(store, full=False)[1] == []


def test_verify_sees_missing_short_and_edited(store: Store) -> None:
    a, b, c = (commit(store, n, f"01{n}", n.encode() * 50) for n in "abc")
    (a.data / "part-00000.txt").unlink()
    (b.data / "part-00000.txt").chmod(0o644)
    (b.data / "part-00000.txt").write_bytes(b"short")
    (c.path / "manifest.json").chmod(0o644)
    (c.path / "manifest.json").write_bytes(c.manifest.to_bytes().replace(b'"MIT"', b'"BSD"'))
    faults = {fault.ref: fault.what for fault in verify_store(store, full=False)[1]}
    assert faults == {
        "a@v1": "data/part-00000.txt is missing",
        "b@v1": "data/part-00000.txt has 5 bytes, not 50",
        "c@v1": "the manifest of c@v1 was changed after its commit",
    }


def test_cache_ignores_damaged_and_dangling_entries(store: Store) -> None:
    artifact = commit(store, "web", "01A")
    key = artifact.manifest.producer.action_key
    assert store.cached(key) is not None
    publish_bytes(index_file(store.root, "action", key), b"{torn")
    assert store.cached(key) is None
    assert store.cached("sha256:" + "0" * 64) is None


def test_cache_ignores_a_run_whose_files_have_lost_bytes(store: Store) -> None:
    artifact = commit(store, "web", "01A")
    key = artifact.manifest.producer.action_key
    part = artifact.data / "part-00000.txt"
    part.chmod(0o644)
    part.write_bytes(b"hell")
    assert store.cached(key) is None


def test_a_version_published_while_a_name_is_resolved(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = commit(store, "web", "01A", b"one")

    def listed_just_before_a_commit(root: Path, name: str) -> dict[int, Pointer]:
        found = versions(root, name)
        if len(found) == 1:
            commit(store, "web", "01B", b"two")
        return found

    monkeypatch.setattr("llmctl.store.store.versions", listed_just_before_a_commit)
    assert store.resolve("web").digest == first.digest
    assert store.resolve("web").ref == "web@v2"


def test_a_version_that_is_the_latest_already_is_not_written_again(store: Store) -> None:
    pointers = [store.cached(commit(store, "web", f"01{n}", n.encode()).manifest.producer.action_key) for n in "ab"]
    assert pointers[0] is not None
    assert pointers[1] is not None
    latest = store.root / "web" / "refs" / "latest.json"
    latest.with_name(".lock").unlink(missing_ok=True)
    before = latest.stat()
    assert store.publish_version("web", pointers[1], reuse=True).ref == "web@v2"
    assert (latest.stat().st_ino, latest.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not latest.with_name(".lock").exists()  # nor is anything made that a read-only store would refuse
    assert store.publish_version("web", pointers[0], reuse=True).ref == "web@v1"
    assert store.resolve("web").ref == "web@v1"


def test_a_store_that_is_not_there_yet_is_empty_and_stays_away(tmp_path: Path) -> None:
    expected = Store.expected(tmp_path / "none")
    with pytest.raises(InputError, match="no artifact is called 'web'"):
        expected.resolve("web")
    assert expected.cached("sha256:" + "0" * 64) is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="local directory"):
        Store.expected("s3://bucket/store")


@pytest.mark.parametrize(
    "path",
    ["../x", "/etc/passwd", "data", "data/", "data/../../x", "data//x", "data/./x", "manifest.json", "data\\x", ""],
)
def test_no_manifest_names_a_file_elsewhere(store: Store, path: str) -> None:
    with pytest.raises(ValidationError, match="must name a file under data/"):
        FileEntry(path=path, bytes=1, sha256="")
    artifact = commit(store, "web", "01A")
    file = artifact.path / "manifest.json"
    file.chmod(0o644)
    file.write_text(file.read_text().replace('"data/part-00000.txt"', json.dumps(path)))
    with pytest.raises(IntegrityError, match=r"damaged at files\.0\.path"):
        store.resolve(str(artifact.path))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_manifest_with_a_figure_that_json_cannot_hold_is_never_made(store: Store, value: float) -> None:
    manifest = commit(store, "web", "01A").manifest
    fields = {**manifest.model_dump(by_alias=True), "totals": {"loss": value}}
    with pytest.raises(ValidationError, match="finite number"):
        Manifest.model_validate(fields)
    assert Manifest.model_validate({**fields, "totals": {"loss": 1.5}}).totals == {"loss": 1.5}


def test_a_reader_that_left_is_no_failure_of_the_store() -> None:
    with pytest.raises(BrokenPipeError), explained("the store"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    with pytest.raises(InputError, match="no permission for the store"), explained("the store"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_plain_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "chats.x.jsonl"
    path.write_bytes(b"hello")
    given = FileInput.of(path, "chats")
    assert given.digest == "sha256:" + hashlib.sha256(b"hello").hexdigest()
    assert (given.name, given.kind, given.as_input().ref) == ("chats", "chats", "chats.x.jsonl")


def test_lineage_follows_digests(store: Store) -> None:
    raw = commit(store, "web", "01A", b"raw")
    clean = commit(store, "web.clean", "01B", b"clean", {"input": raw})
    tree = trace(store, clean)
    assert [(n.role, n.ref) for n in tree.parents] == [("input", "web@v1")]
    outside = clean.manifest.model_copy(
        update={"inputs": {"x": InputEntry(digest="sha256:ff", kind="documents", ref="gone@v1")}}
    )
    tree = trace(store, Artifact(clean.path, outside, clean.ref))
    assert (tree.parents[0].ref, tree.parents[0].command) == ("gone@v1", "")


def test_publish_leaves_the_old_file_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "f"
    publish_bytes(path, b"old")
    with pytest.raises(RuntimeError), publish(path) as handle:
        handle.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_leftover_temporary_files_are_refused(store: Store) -> None:
    run, lock = store.begin("web", "01A")
    with lock:
        (run.data / "part-00000.parquet.tmp").write_bytes(b"half")
        with pytest.raises(IntegrityError, match="not a finished file"):
            describe_files(run)


def _opener(root: Path, barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    for turn in range(200):
        publish_bytes(root / "same", f"{turn}".encode())
        Store.open(root / f"store-{turn}", create=True)


def test_many_processes_make_one_store_and_publish_one_path(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [context.Process(target=_opener, args=(tmp_path, barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert (tmp_path / "same").read_bytes() == b"199"
    assert list(tmp_path.rglob("*.tmp")) == []


def _publisher(root: Path, worker: int, barrier: object) -> None:
    store = Store.open(root)
    barrier.wait()  # type: ignore[attr-defined]
    for turn in range(5):
        commit(store, "shared", f"01-{worker}-{turn}", f"{worker}{turn}".encode())


def test_racing_publishers_all_win(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [context.Process(target=_publisher, args=(store.root, i, barrier)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert list(versions(store.root, "shared")) == list(range(1, 16))
    assert verify_store(store, full=True) == (15, [])
    assert json.loads((store.root / "shared" / "refs" / "latest.json").read_bytes())["version"] == 15


def test_the_committed_schema_is_the_models(store: Store) -> None:
    assert json.loads(SCHEMA.read_text()) == Manifest.model_json_schema(by_alias=True)
    artifact = commit(store, "web", "01A")
    jsonschema.validate(json.loads((artifact.path / "manifest.json").read_bytes()), json.loads(SCHEMA.read_text()))


def test_the_card_opens_as_a_data_set(store: Store) -> None:
    card = (commit(store, "web", "01A").path / "README.md").read_text()
    assert card.startswith("---\nlicense:\n- mit\n---\n")
