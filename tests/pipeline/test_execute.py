from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from llmctl.config.base import Config, execution
from llmctl.config.errors import InputError, IntegrityError, LockedError, UsageError
from llmctl.config.tokens import TokenizerConfig
from llmctl.pipeline.execute import Call, execute, plan, resolve_inputs
from llmctl.pipeline.job import FileFacts, Job, Product, Silent
from llmctl.pipeline.partial import Partial
from llmctl.pipeline.stage import Role, Stage
from llmctl.pipeline.stages import STAGES
from llmctl.store.artifact import Artifact, FileInput, Input
from llmctl.store.files import publish_bytes
from llmctl.store.layout import RunDirectory, index_file
from llmctl.store.manifest import InputEntry
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
    job.progress.update(job.config.words, job.config.words, "words", speed=0.5)
    job.progress.note(f"{job.config.words} words")
    if job.config.fail:
        raise InputError("asked to fail")
    return Product(
        "llmctl.words/1", {"unit": "word"}, {"calls": len(calls.read_text())}, {"words.txt": FileFacts(rows=3)}
    )


def stumble(job: Job[WordsConfig]) -> Product:
    del job
    raise ZeroDivisionError("division by zero")


def measure_nothing(job: Job[WordsConfig]) -> Product:
    publish_bytes(job.out / "words.txt", b"x")
    return Product("llmctl.words/1", totals={"loss": math.nan})


def log_nothing(job: Job[WordsConfig]) -> Product:
    job.log({"loss": math.nan})
    raise AssertionError("unreachable")


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


def the_newest_numbers(
    inputs: Mapping[str, Input], find: Callable[[str], Artifact], _config: Config
) -> dict[str, Artifact]:
    """What the artifact in `input` was made from, found in the store."""
    given = inputs["input"]
    assert isinstance(given, Artifact)
    return {"numbers": find(given.manifest.inputs["input"].digest)}


def test_derived_inputs_are_in_the_key_and_in_the_manifest(store: Store) -> None:
    numbers = run(store).artifact
    given = {"input": run(store, SECOND, inputs={"input": numbers}).artifact}
    deriving = stage(command="third", inputs=SECOND.inputs, derive=f"{__name__}:the_newest_numbers")
    made = run(store, deriving, inputs=given).artifact
    assert made.manifest.inputs["numbers"].digest == numbers.digest
    bare = plan(Call(stage(command="third", inputs=SECOND.inputs), WordsConfig(), given), store)
    planned = plan(Call(deriving, WordsConfig(), given), store)
    assert planned["inputs"] == {"input": given["input"].digest, "numbers": numbers.digest}
    assert planned["action_key"] == made.manifest.producer.action_key != bare["action_key"]
    other = run(store, config=WordsConfig(words=9)).artifact
    assert not run(store, deriving, inputs={**given, "numbers": other}).cached  # one that is given stands
    entry = InputEntry(digest="sha256:0", kind="documents", ref="gone")
    lost = numbers.manifest.model_copy(update={"inputs": {"input": entry}})
    with pytest.raises(InputError, match="holds nothing with digest"):
        run(store, deriving, inputs={"input": Artifact(numbers.path, lost, "lost")})


def nest_words(job: Job[WordsConfig]) -> Product:
    job.nested("tokenizer", TokenizerConfig.model_validate({}), {})
    return Product("llmctl.words/1")


def test_the_op_version_of_a_nested_stage_changes_the_key(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    nesting = stage(command="more", inputs=SECOND.inputs, nests=("tokenizer",))
    given = {"input": run(store).artifact}
    calls = [Call(nesting, WordsConfig(), inputs) for inputs in (given, {**given, "tokenizer": given["input"]})]
    keys = [plan(call, store)["action_key"] for call in calls]
    monkeypatch.setitem(STAGES, "tokenizer", replace(STAGES["tokenizer"], op_version=99))
    bumped = [plan(call, store)["action_key"] for call in calls]
    assert [old == new for old, new in zip(keys, bumped, strict=True)] == [False, True]  # not where one is given


def test_a_stage_nests_only_what_it_declares(store: Store) -> None:
    undeclared = stage(run=f"{__name__}:nest_words", sources=FIRST.sources)
    with pytest.raises(RuntimeError, match="words does not declare that it nests tokenizer"):
        run(store, undeclared)


def test_tokenize_declares_the_tokenizer() -> None:
    assert STAGES["tokenize"].nests == ("tokenizer",)


def test_failure_publishes_nothing_and_leaves_an_event_log(store: Store) -> None:
    with pytest.raises(InputError, match="asked to fail"):
        run(store, config=WordsConfig(fail=True))
    assert store.names() == []
    (log,) = (store.root / "runs").iterdir()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events] == ["START", "NOTE", "FAIL"]
    assert events[1]["text"] == "3 words"
    assert events[2]["error"] == "asked to fail"
    assert events[2]["progress"] == {"done": 3, "total": 3, "unit": "words", "speed": 0.5}
    assert "make_words" in "".join(events[2]["traceback"])
    assert [p for p in (store.root / "numbers").iterdir() if p.name != "refs"] == []


def test_a_resumable_stage_keeps_its_work(store: Store) -> None:
    resumable = stage(sources=FIRST.sources, resumable=True)
    with pytest.raises(InputError):
        run(store, resumable, WordsConfig(fail=True))
    with pytest.raises(InputError):
        run(store, resumable, WordsConfig(fail=True))
    (work,) = store.root.glob("numbers/*/work")
    assert (work / "calls").read_text() == "xx"


def events_of(store: Store, run_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store.root / "runs" / f"{run_id}.jsonl").read_text().splitlines()]


def test_a_resumed_run_logs_under_its_id_and_names_each_receipt(store: Store) -> None:
    resumable = stage(sources=FIRST.sources, resumable=True)
    for receipt in ("01FIRST", "01SECOND"):
        with pytest.raises(InputError):
            run(store, resumable, WordsConfig(fail=True), run_id=receipt)
    events = events_of(store, "01FIRST")
    assert [event["receipt"] for event in events if event["event"] == "START"] == ["01FIRST", "01SECOND"]
    assert [path.name for path in (store.root / "runs").iterdir()] == ["01FIRST.jsonl"]


def test_notes_reach_the_user_and_the_log_of_the_run_that_said_them(store: Store) -> None:
    class Recorder(Silent):
        def __init__(self) -> None:
            self.told: list[Any] = []

        def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
            self.told.append((done, total, unit, facts))

        def note(self, text: str) -> None:
            self.told.append(text)

    recorder = Recorder()
    made = execute(Call(FIRST, WordsConfig(), {}, run_id="01A"), store, recorder).artifact
    assert recorder.told == [(3, 3, "words", {"speed": 0.5}), "3 words"]
    events = events_of(store, "01A")
    assert [event["event"] for event in events] == ["START", "NOTE", "COMPLETE"]
    assert (events[1]["text"], events[2]["ref"]) == ("3 words", made.ref)


def test_a_bug_leaves_its_traceback(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        run(store, stage(sources=FIRST.sources, run=f"{__name__}:stumble"), run_id="01A")
    failed = events_of(store, "01A")[-1]
    assert failed["error"] == "ZeroDivisionError('division by zero')"
    assert "in stumble" in "".join(failed["traceback"])


def test_a_stage_with_an_undefined_figure_publishes_nothing(store: Store) -> None:
    with pytest.raises(ValueError, match="finite number"):
        run(store, stage(sources=FIRST.sources, run=f"{__name__}:measure_nothing"))
    assert (store.names(), list(store.root.glob("*/*/manifest.json"))) == ([], [])
    with pytest.raises(ValueError, match="not JSON compliant"):
        run(store, stage(sources=FIRST.sources, run=f"{__name__}:log_nothing"))


def test_a_resumed_run_is_published_under_the_name_asked_for(store: Store) -> None:
    resumable = stage(sources=FIRST.sources, resumable=True)
    left, held = store.begin("old", "01OLD")
    with held:
        (left.work / "calls").write_text("x")
        (left.data / "stale.txt").write_text("half a file")
    key = str(plan(Call(resumable, WordsConfig(), {}), store)["action_key"])
    Partial(store, key).mark(left)
    made = run(store, resumable, name="new").artifact
    assert (made.ref, made.path, made.manifest.totals) == ("new@v1", left.path, {"calls": 2})
    assert [entry.path for entry in made.manifest.files] == ["data/words.txt"]
    assert store.names() == ["new"]


def started(partial: Partial, run_id: str, *, resumable: bool = False, anew: bool = False) -> RunDirectory:
    """Start a run and let go of it, as a kill does."""
    run, held = partial.start("numbers", run_id, resumable=resumable, anew=anew)
    with held:
        return run


def test_a_committed_run_is_never_taken_over(store: Store) -> None:
    made = run(store).artifact
    partial = Partial(store, made.manifest.producer.action_key)
    for resumable in (False, True):
        partial.mark(RunDirectory(store.root, "numbers", made.path.name))
        assert started(partial, f"01{resumable}", resumable=resumable).run_id == f"01{resumable}"
    assert verify_store(store, full=True) == (1, [])
    assert not (made.path / "work").exists()


def test_a_live_run_keeps_its_mark(store: Store) -> None:
    partial = Partial(store, "sha256:" + "0" * 64)
    live, held = partial.start("numbers", "01LIVE", resumable=False, anew=False)
    with held:
        twin, twin_held = partial.start("numbers", "01TWIN", resumable=False, anew=False)
        with twin_held:
            assert (live.run_id, twin.run_id) == ("01LIVE", "01TWIN")
            assert partial.marked() == live
            partial.clear(twin)
            assert partial.marked() == live
    assert started(partial, "01NEXT").run_id == "01NEXT"
    assert not live.path.exists()  # nothing can be made of what the killed one left
    assert partial.marked() is not None


@pytest.mark.parametrize("force", [False, True])
def test_a_resumable_run_is_not_done_by_two(store: Store, force: bool) -> None:
    resumable = stage(sources=FIRST.sources, resumable=True)
    partial = Partial(store, str(plan(Call(resumable, WordsConfig(), {}), store)["action_key"]))
    live, held = partial.start("numbers", "01LIVE", resumable=True, anew=False)
    with held:
        (live.work / "calls").write_text("x")
        with pytest.raises(LockedError, match="another process works on run 01LIVE") as raised:
            run(store, resumable, force=force)
        assert raised.value.exit_code == 7
    made = run(store, resumable, force=force).artifact
    assert (made.path == live.path, made.manifest.totals["calls"]) == ((True, 2) if not force else (False, 1))
    assert partial.marked() is None


def _starter(root: Path, number: int, barrier: Barrier) -> None:
    store = Store.open(root)
    for turn in range(40):
        partial = Partial(store, f"sha256:{turn:064x}")
        barrier.wait(60)
        try:
            _, held = partial.start("numbers", f"01-{number}-{turn}", resumable=True, anew=False)
        except LockedError:
            barrier.wait(60)
        else:
            with held:
                barrier.wait(60)  # held until every other one has tried
                (root / f"winner-{turn}").touch(exist_ok=False)


def test_of_racing_starts_one_is_let_in(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    racers = [context.Process(target=_starter, args=(store.root, number, barrier)) for number in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(timeout=120)
        assert racer.exitcode == 0
    assert len(list(store.root.glob("winner-*"))) == len(list((store.root / "numbers").glob("01-*"))) == 40


def test_force_gets_past_a_damaged_manifest_of_a_marked_run(store: Store) -> None:
    made = run(store).artifact
    Partial(store, made.manifest.producer.action_key).mark(RunDirectory(store.root, "numbers", made.path.name))
    (made.path / "manifest.json").chmod(0o644)
    (made.path / "manifest.json").write_text("{torn")
    with pytest.raises(IntegrityError, match="make the artifact again with --force|damaged at JSON"):
        run(store)
    assert run(store, force=True).artifact.ref == "numbers@v2"


def test_a_hit_writes_nothing(store: Store) -> None:
    run(store)
    (store.root / "numbers" / "refs" / ".lock").unlink(missing_ok=True)

    def state() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in store.root.rglob("*")}

    before = state()
    assert run(store).cached
    assert state() == before


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
