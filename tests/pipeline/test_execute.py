from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from llmctl.config.base import Config, execution
from llmctl.config.errors import InputError, UsageError
from llmctl.pipeline.execute import Call, execute, plan, resolve_inputs
from llmctl.pipeline.job import FileFacts, Job, Product, Silent
from llmctl.pipeline.partial import Partial
from llmctl.pipeline.stage import Role, Stage
from llmctl.store.artifact import Artifact, FileInput
from llmctl.store.files import publish_bytes
from llmctl.store.layout import RunDirectory, index_file
from llmctl.store.store import Store
from llmctl.store.verify import verify_store


class WordsConfig(Config):
    words: int = Field(3, ge=1, description="how many")
    workers: int = execution(1, description="workers")
    fail: bool = Field(False, description="raise at the end")


def make_words(job: Job[WordsConfig]) -> Product:
    """A real stage body: writes numbered words, and keeps count of its calls in `work`."""
    calls = job.work / "calls"
    calls.write_text(f"{calls.read_text() if calls.exists() else ''}x")
    given = job.inputs.get("input")
    prefix = given.file("words.txt").read_text() if isinstance(given, Artifact) else ""
    publish_bytes(job.out / "words.txt", (prefix + " ".join(map(str, range(job.config.words)))).encode())
    if job.config.fail:
        raise InputError("asked to fail")
    return Product(
        "llmctl.words/1", {"unit": "word"}, {"calls": len(calls.read_text())}, {"words.txt": FileFacts(rows=3)}
    )


def sources(config: WordsConfig, fetched: None) -> tuple[str, dict[str, str]]:
    return "numbers", {"source": f"sha256:{config.words:064x}"}


def stage(**changes: Any) -> Stage:
    fields: dict[str, Any] = {
        "command": "words",
        "summary": "words",
        "config": f"{__name__}:WordsConfig",
        "run": f"{__name__}:make_words",
        "output": "documents",
    }
    return Stage(**{**fields, **changes})


FIRST = stage(sources=f"{__name__}:sources")
SECOND = stage(command="more", inputs={"input": Role(("documents",), "words")})


def run(store: Store, which: Stage = FIRST, config: WordsConfig | None = None, **options: Any) -> Any:
    return execute(Call(which, config or WordsConfig(), options.pop("inputs", {}), **options), store, Silent())


def test_a_second_call_is_a_hit(store: Store) -> None:
    first, second = run(store), run(store, config=WordsConfig(workers=8))
    assert (first.artifact.ref, first.cached) == ("numbers@v1", False)
    assert (second.artifact.ref, second.cached) == ("numbers@v1", True)
    assert run(store, config=WordsConfig(words=4)).artifact.ref == "numbers@v2"


def test_force_makes_a_new_version_of_the_same_bytes(store: Store) -> None:
    first, second = run(store), run(store, force=True)
    assert second.artifact.ref == "numbers@v2"
    assert second.artifact.digest == first.artifact.digest


def test_default_name_keeps_the_root(store: Store) -> None:
    made = run(store, SECOND, inputs={"input": run(store).artifact})
    assert made.artifact.ref == "numbers.more@v1"
    again = run(store, SECOND, inputs={"input": made.artifact})
    assert again.artifact.ref == "numbers.more@v2"


def test_a_hit_under_another_name_is_an_alias(store: Store) -> None:
    run(store)
    aliased = run(store, name="other")
    assert (aliased.artifact.ref, aliased.cached) == ("other@v1", True)
    assert store.resolve("other").path == store.resolve("numbers").path
    assert verify_store(store, full=True) == (2, [])


def test_equal_bytes_stay_cached_downstream(store: Store) -> None:
    run(store, SECOND, inputs={"input": run(store).artifact})
    rerun = run(store, force=True)
    assert run(store, SECOND, inputs={"input": rerun.artifact}).cached


def test_the_op_version_changes_the_key(store: Store) -> None:
    run(store)
    assert not run(store, stage(sources=FIRST.sources, op_version=2)).cached


def test_failure_publishes_nothing_and_leaves_an_event_log(store: Store) -> None:
    with pytest.raises(InputError, match="asked to fail"):
        run(store, config=WordsConfig(fail=True))
    assert store.names() == []
    (log,) = (store.root / "runs").iterdir()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events] == ["START", "FAIL"]
    assert events[1]["error"] == "asked to fail"
    assert [p for p in (store.root / "numbers").iterdir() if p.name != "refs"] == []


def test_a_resumable_stage_keeps_its_work(store: Store) -> None:
    resumable = stage(sources=FIRST.sources, resumable=True)
    with pytest.raises(InputError):
        run(store, resumable, WordsConfig(fail=True))
    with pytest.raises(InputError):
        run(store, resumable, WordsConfig(fail=True))
    (work,) = store.root.glob("numbers/*/work")
    assert (work / "calls").read_text() == "xx"


def test_a_resumed_run_is_published_under_the_name_asked_for(store: Store) -> None:
    resumable = stage(sources=FIRST.sources, resumable=True)
    left, held = store.begin("old", "01OLD")
    with held:
        (left.work / "calls").write_text("x")
    key = str(plan(Call(resumable, WordsConfig(), {}), store)["action_key"])
    Partial(store, key).mark(left)
    made = run(store, resumable, name="new").artifact
    assert (made.ref, made.path, made.manifest.totals) == ("new@v1", left.path, {"calls": 2})
    assert store.names() == ["new"]


def test_a_committed_or_held_run_is_never_taken_over(store: Store) -> None:
    made = run(store).artifact
    partial = Partial(store, made.manifest.producer.action_key)
    committed = RunDirectory(store.root, "numbers", made.path.name)
    partial.mark(committed)
    assert partial.take_over(resumable=False) is None
    assert verify_store(store, full=True) == (1, [])
    live, held = store.begin("numbers", "01LIVE")
    partial.mark(live)
    with held:
        assert partial.take_over(resumable=False) is None
        assert live.path.is_dir()
    partial.clear(committed)
    assert partial.marked() == live
    assert partial.take_over(resumable=False) is None
    assert not live.path.exists()


def test_a_kill_between_commit_and_index_is_mended(store: Store) -> None:
    made = run(store).artifact
    key = made.manifest.producer.action_key
    index_file(store.root, "action", key).unlink()
    (store.root / "numbers" / "refs" / "v1.json").unlink()
    (store.root / "numbers" / "refs" / "latest.json").unlink()
    partial = json.dumps({"run": f"numbers/{made.path.name}", "digest": "", "manifest_sha256": ""}).encode()
    publish_bytes(index_file(store.root, "partial", key), partial)
    again = run(store)
    assert (again.cached, again.artifact.ref, again.artifact.path) == (True, "numbers@v1", made.path)


def test_the_manifest_says_it_all(store: Store) -> None:
    manifest = run(store, argv=("words", "--x")).artifact.manifest
    assert manifest.totals == {"calls": 1}
    assert manifest.semantic == {"unit": "word"}
    assert manifest.files[0].rows == 3
    assert manifest.producer.argv == ["words", "--x"]
    assert manifest.producer.config == {"words": 3, "workers": 1, "fail": False}
    assert manifest.inputs["source"].digest == f"sha256:{3:064x}"


def test_plan_runs_nothing(store: Store) -> None:
    call = Call(FIRST, WordsConfig(), {})
    assert plan(call, store)["cached"] is False
    run(store)
    assert plan(call, store)["cached"] is True


def test_inputs_are_checked_together(store: Store, tmp_path: Path) -> None:
    two = stage(inputs={"input": Role(("tokens",), "tokens"), "chats": Role(("chats",), "chats", files=True)})
    run(store)
    with pytest.raises(
        InputError, match=r"numbers@v1 is a documents artifact; words takes tokens as input.*none@v1|'none'"
    ):
        resolve_inputs(two, {"input": "numbers", "chats": "none"}, store)
    with pytest.raises(UsageError, match="needs tokens"):
        resolve_inputs(two, {"chats": "numbers"}, store)
    path = tmp_path / "chats.jsonl"
    path.write_text("{}")
    given = resolve_inputs(stage(inputs={"chats": Role(("chats",), "chats", files=True)}), {"chats": str(path)}, store)
    assert isinstance(given["chats"], FileInput)
    assert given["chats"].digest == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
