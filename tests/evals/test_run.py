"""`llmctl eval --tasks`: user tasks, gates, faults, what is left out, servers, and going on after a kill."""

from __future__ import annotations

import base64
import json
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import ConfigError, GateError, InputError, UsageError
from llmctl.config.evals import EvalConfig
from llmctl.evals.gates import check_gates
from llmctl.evals.local import LocalModel
from llmctl.evals.remote import Fetched, sources
from llmctl.evals.sandbox.verdict import Verdict
from llmctl.evals.sandbox.verify import Program
from llmctl.inference.remote import card_of
from llmctl.pipeline.evaluations import names_figure
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.stages import stage_named
from llmctl.store.artifact import Artifact
from llmctl.store.manifest import InputEntry, sha256_of
from llmctl.store.store import Store
from tests.answering import Answering
from tests.evals.evaluations import ROWS, Evals, imported, samples
from tests.evals.tiny import file_of, text

MINE = """\
task: mine
output_type: multiple_choice
doc_to_text: "Q: {{question}}\\nA:"
doc_to_choice: options
doc_to_target: right
metric_list: [acc, acc_norm, ece]
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    return str(path)


def test_a_task_is_a_file_and_ten_lines_and_every_sample_is_kept(evals: Evals, mine: str) -> None:
    artifact = evals.run({"tasks": mine})
    rows, totals = samples(artifact), artifact.manifest.totals
    right = [float(row["prediction"] == row["answer"]) for row in rows]
    assert totals["mine.acc"] == sum(right) / len(right)
    assert totals["mine.chance"] == 0.5
    assert [json.loads(row["scores"])["acc"] for row in rows] == right
    assert [row["prompt"] for row in rows] == [f"Q: {row['question']}\nA:" for row in ROWS]
    assert [row["choices"] for row in rows] == [[f" {one}" for one in row["options"]] for row in ROWS]
    assert (totals["mine.scored"], totals["mine.skipped.limit"]) == (20, 0)
    table = json.loads(artifact.file("results.json").read_text())["curves"]["mine"]["ece"]
    assert sum(count for _, _, count in table) == 20
    assert totals["mine.ece"] == pytest.approx(sum(abs(a - b) * n for a, b, n in table) / 20)


def test_limit_and_samples_choose_and_batches_change_nothing(evals: Evals, mine: str) -> None:
    whole = samples(evals.run({"tasks": mine}))
    first = evals.run({"tasks": mine, "limit": 3, "batch_tokens": 1, "reuse": False})
    assert [row["number"] for row in samples(first)] == [0, 1, 2]
    assert first.manifest.totals["mine.skipped.limit"] == 17
    for one, other in zip(samples(first), whole, strict=False):
        assert one["log_likelihoods"] == pytest.approx(other["log_likelihoods"], abs=1e-4)
    chosen = samples(evals.run({"tasks": mine, "samples": {"mine": [4, 7]}}))
    assert [row["number"] for row in chosen] == [4, 7]


def test_a_gate_that_is_not_met_exits_6_and_the_figures_are_there(evals: Evals, mine: str) -> None:
    with pytest.raises(GateError, match=r"mine.acc is 0\.\d+, 0.99 is wanted"):
        evals.run({"tasks": mine, "min": "mine.acc=0.99"})
    assert evals.store.resolve("tested.eval").manifest.totals["mine.scored"] == 20
    with pytest.raises(GateError):  # from the cache too
        evals.run({"tasks": mine, "min": "acc=0.99"})
    evals.run({"tasks": mine, "min": "acc=0.0,mine.acc_norm=0"})


def test_a_gate_on_no_figure_is_told_before_anything_runs(
    evals: Evals, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmctl.evals.stage.open_engine", lambda *_, **__: pytest.fail("the model was opened"))
    with pytest.raises(UsageError, match="--min names 'mine.accuracy', and there is no such figure") as raised:
        evals.run({"tasks": mine, "min": {"mine.accuracy": 0.5}})
    assert raised.value.hint.startswith("did you mean mine.acc? the figures are heldout.loss, ")
    assert raised.value.hint.endswith("mine.acc, mine.acc_norm, mine.ece")
    with pytest.raises(UsageError, match="--min names 'yours.acc'"):
        evals.run({"tasks": mine, "min": "acc=0.1,yours.acc=0.5"})


def test_gates_mean_a_figure_by_every_filter_or_by_one() -> None:
    config = EvalConfig.model_validate({"tasks": "gsm8k,mmlu", "draws": 2, "budget": "8,16", "min": "mmlu/law.acc=0.1"})
    check_gates(config, has_choices=False, has_scorer=False)
    for gate, is_known in {
        "gsm8k.exact_match=0.3": True, "gsm8k.exact_match,strict-match=0.3,acc=1": True, "vote@2,8_tokens=0": True,
        "gsm8k.best@2,8_tokens=0": False, "vote@4=0": False, "gsm8k.exact_match,lax=0": False, "law.acc=0": False,
    }.items():  # fmt: skip
        gated = EvalConfig.model_validate({**config.model_dump(), "min": gate})
        if is_known:
            check_gates(gated, has_choices=False, has_scorer=False)
        else:
            with pytest.raises(UsageError, match="there is no such figure"):
                check_gates(gated, has_choices=False, has_scorer=False)
    assert [names_figure("gsm8k.exact_match", f"gsm8k.exact_match{way}") for way in ("", ",lax", "s")] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"right": 2}, r"rows.jsonl:2\): the right answer of the task mine is 2, but there are 2 choices"),
        ({"right": "x"}, r"the right answer of the task mine is 'x', but there are 2 choices"),
        ({"options": "ab"}, r"rows.jsonl:2\): doc_to_choice of the task mine gives no list of texts"),
        ({"question": None}, "fails"),
    ],
)
def test_a_fault_of_the_data_is_one_line_that_names_the_row(
    evals: Evals, mine: str, change: dict[str, Any], said: str
) -> None:
    row = {**ROWS[1], **change}
    row = {key: value for key, value in row.items() if value is not None}
    with pytest.raises(InputError, match=said if change != {"question": None} else r":2\): doc_to_text .* undefined"):
        evals.run({"tasks": mine}, [ROWS[0], row])


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (MINE.replace("doc_to_choice: options\n", ""), "multiple_choice needs doc_to_choice"),
        (MINE.replace("metric_list", "metrics_list"), r"metrics_list: unknown key \(did you mean metric_list\?\)"),
        (MINE.replace("acc_norm", "exact_match"), "multiple_choice has no metric exact_match"),
        (MINE.replace("[acc,", "[{metric: acc, aggregation: perplexity},"), "aggregation of acc is mean"),
        ("- a\n", "holds no mapping"),
    ],
)
def test_a_fault_of_a_task_file_is_told_before_anything_runs(mine: str, lines: str, said: str) -> None:
    Path(mine).write_text(lines)
    with pytest.raises((ConfigError, ValueError), match=said):
        EvalConfig.model_validate({"tasks": mine})


def test_what_is_not_there_is_named(evals: Evals, mine: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no task is called 'pika'; did you mean piqa"):
        EvalConfig.model_validate({"tasks": "pika"})
    other = file_of(tmp_path / "other.jsonl", ROWS)
    with pytest.raises(UsageError, match="no data for mine"):
        evals.run({"tasks": f"{mine},piqa"}, piqa=other)
    with pytest.raises(UsageError, match=r"--data yours=… belongs to none of the tasks mine"):
        evals.run({"tasks": mine}, mine=other, yours=other)
    with pytest.raises(UsageError, match=r"gsm8k takes its 5 examples from the split train, which is not given"):
        evals.run({"tasks": "gsm8k"}, gsm8k=other)


def test_a_prompt_beyond_the_context_is_refused_cut_or_left_out_and_counted(evals: Evals, mine: str) -> None:
    rows = [*ROWS[:3], {**ROWS[3], "question": text(1, 200)}]
    with pytest.raises(InputError, match=r"mine: item .*:4\) needs \d+ tokens, the model reads 128"):
        evals.run({"tasks": mine}, rows)
    left_out = evals.run({"tasks": mine, "overlong": "skip"}, rows)
    assert left_out.manifest.totals["mine.scored"] == 3
    assert left_out.manifest.totals["mine.skipped.too_long"] == 1
    assert samples(left_out)[3]["skipped"].startswith("too_long: needs")
    assert "mine: 1 of 4 items left out: too_long" in evals.notes.said
    cut = evals.run({"tasks": mine, "overlong": "truncate"}, rows)
    assert cut.manifest.totals["mine.scored"] == 4


def test_a_killed_run_goes_on_from_its_answers(evals: Evals, mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(LocalModel, "at_once", 8)
    answer = LocalModel.answer

    def dies(self: LocalModel, requests: Any) -> Any:
        asked.append(len(requests))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answer(self, requests)

    monkeypatch.setattr(LocalModel, "answer", dies)
    with pytest.raises(KeyboardInterrupt):
        evals.run({"tasks": mine})
    resumed = evals.run({"tasks": mine})
    assert sum(asked) - 8 == 40  # the third call gave nothing; every request was answered once
    again = evals.run({"tasks": mine, "max_running": 4, "seed": 9})
    assert sum(asked) - 8 == 40
    assert samples(again) == samples(resumed)


def test_tasks_with_parts_and_groups_pool_their_errors(evals: Evals, tmp_path: Path) -> None:
    parted = tmp_path / "parted.yaml"
    parted.write_text(MINE.replace("task: mine", "task: parted\nby: topic\nnum_fewshot: 1"))
    group = tmp_path / "both.yaml"
    group.write_text(
        f"group: both\ntask: [{parted}]\n"
        "aggregate_metric_list: [{metric: acc, centred: true, weight_by_size: false}]\n"
    )
    rows = [{**row, "topic": "one" if n < 8 else "two.b"} for n, row in enumerate(ROWS)]
    artifact = evals.run({"tasks": str(group)}, parted=file_of(tmp_path / "parted.jsonl", rows))
    totals = artifact.manifest.totals
    one, two = float(totals["parted/one.acc"]), float(totals["parted/two_b.acc"])
    assert totals["parted.acc"] == pytest.approx((8 * one + 12 * two) / 20)
    errors = [float(totals[f"parted/{part}.acc.stderr"]) for part in ("one", "two_b")]
    pooled = ((7 * 8 * errors[0] ** 2 + 11 * 12 * errors[1] ** 2) / 18 / 20) ** 0.5
    assert totals["parted.acc.stderr"] == pytest.approx(pooled)
    assert totals["both.acc_centred"] == pytest.approx((float(totals["parted.acc"]) - 0.5) / 0.5)
    for row in samples(artifact):  # the example is another item of the same part
        example = row["prompt"].partition("\n\n")[0]
        own = [other for other in rows if f"Q: {other['question']}\nA:" in example]
        assert [other["topic"].replace(".", "_") for other in own] == [row["part"].replace(".", "_")]
        assert own[0]["question"] != rows[row["number"]]["question"]


CODE = """\
task: code
metric_list: [{metric: pass, k: 1}, {metric: pass, k: 2}]
doc_to_text: prompt
repeats: 3
generation_kwargs: {until: ["#"], max_gen_toks: 4, do_sample: true, temperature: 1.0}
check: {program: "{{prompt}}{{completion}}", test: "assert {{name}}", entry_point: name, setup: prompt}
"""


def test_programs_are_handed_to_the_verifier_and_no_verdict_is_no_score(
    evals: Evals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code.yaml").write_text(CODE)
    handed: list[Program] = []
    passed, failed, missing = Verdict("passed"), Verdict("failed", "AssertionError"), Verdict("missing")
    verdicts = {0: [passed, failed, failed], 1: [missing, passed, missing], 2: [passed, passed, passed]}

    def verify(programs: Sequence[Program]) -> list[Verdict]:
        handed.extend(programs)
        return [verdict for number in range(3) for verdict in verdicts[number]]

    monkeypatch.setattr("llmctl.evals.measure.verify", verify)
    monkeypatch.setattr("llmctl.evals.load.refuse_where_impossible", lambda *_: None)  # the same where no sandbox is
    rows = [{"prompt": f"def f{n}():", "name": f"f{n}"} for n in range(3)]
    artifact = evals.run({"tasks": str(tmp_path / "code.yaml")}, code=file_of(tmp_path / "code.jsonl", rows))
    totals = artifact.manifest.totals
    assert (totals["code.scored"], totals["code.skipped.unchecked"]) == (2, 1)
    assert totals["code.pass@1"] == pytest.approx((1 / 3 + 1) / 2)
    assert totals["code.pass@2"] == pytest.approx((2 / 3 + 1) / 2)
    assert totals["code.oracle_pass@2"] == totals["code.pass@2"]
    kept = samples(artifact)
    assert kept[1]["verdicts"] == ["missing", "passed", "missing"]
    for program, (row, number) in zip(handed, ((row, n) for row in kept for n in range(3)), strict=True):
        assert program.source == rows[row["number"]]["prompt"] + row["texts"][number]
        assert (program.test, program.entry_point) == (f"assert f{row['number']}", f"f{row['number']}")
        assert (program.setup, program.reference, program.timeout_s) == (rows[row["number"]]["prompt"], "", 3.0)
    assert len({text for row in kept for text in row["texts"]}) > 3  # each has random numbers of its own


def test_two_evaluations_are_compared_item_by_item(
    evals: Evals, mine: str, llmctl: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    evals.run({"tasks": mine})
    evals.run({"tasks": mine, "shots": 2})
    done = llmctl("compare", "tested.eval@v1", "tested.eval@v2", "--json")
    assert done.returncode == 0, done.stderr
    told = {one["figure"]: one for one in json.loads(done.stdout.splitlines()[-1])["figures"]}
    scores = [
        [json.loads(row["scores"])["acc"] for row in samples(evals.store.resolve(f"tested.eval@v{version}"))]
        for version in (1, 2)
    ]
    apart = [other - one for one, other in zip(*scores, strict=True)]
    acc = told["mine.acc"]
    assert acc["difference"] == pytest.approx(sum(apart) / 20)
    assert acc["stderr"] == pytest.approx(statistics.stdev(apart) / 20**0.5)
    assert (acc["gained"], acc["lost"]) == (apart.count(1.0), apart.count(-1.0))
    assert (acc["n"], acc["left_out"], acc["other_prompts"]) == (20, 0, 20)
    refused = llmctl("compare", "tested.eval", "tested")
    assert refused.returncode == 3


def test_what_stands_in_the_training_text_is_found_by_item(
    evals: Evals, mine: str, checkpoint: Artifact, tmp_path: Path
) -> None:
    rows = [{**row, "question": text(n + 300, 14)} for n, row in enumerate(ROWS)]
    pages = tmp_path / "pages"
    pages.mkdir()
    for number in range(3):
        hidden = rows[number]["question"] if number != 1 else "nothing"
        (pages / f"{number}.txt").write_text(f"{text(number + 700, 30)} {hidden} {text(number + 800, 30)}")
    collected = execute(
        Call(stage_named("collect"), CollectConfig(sources=(str(pages),)), {}, name="web"), evals.store, evals.notes
    ).artifact
    entry = InputEntry(digest=collected.digest, kind="documents", ref=collected.ref)
    manifest = checkpoint.manifest.model_copy(update={"inputs": {"input": entry}})
    evals.checkpoint = Artifact(checkpoint.path, manifest, "tested@v1")
    found = evals.run({"tasks": mine, "contamination": True}, rows)
    totals = found.manifest.totals
    assert (totals["mine.contaminated"], totals["contaminated"], totals["learned_from"]) == (2, 2, 1)
    hits = pq.read_table(found.file("contamination-00000.parquet")).to_pylist()
    assert sorted(hit["text"] for hit in hits) == sorted(rows[n]["question"].rstrip(".") for n in (0, 2))
    assert {hit["source"] for hit in hits} == {collected.ref}
    with pytest.raises(GateError, match="2 items stand in what the checkpoint has learned from"):
        evals.run({"tasks": mine, "forbid_contamination": True}, rows)
    evals.checkpoint = checkpoint
    with pytest.raises(GateError, match="is not in the store"):
        evals.run({"tasks": mine, "forbid_contamination": True}, rows)


def test_the_report_tells_every_figure_and_what_was_left_out(evals: Evals, mine: str) -> None:
    rows = [*ROWS[:3], {**ROWS[3], "question": text(1, 200)}]
    artifact = evals.run({"tasks": mine, "overlong": "skip"}, rows)
    told = artifact.file("report.md").read_text()
    assert f"| mine.acc | {artifact.manifest.totals['mine.acc']:.4f} |" in told
    assert "- mine: 1 of 4 items left out: too_long" in told
    page = artifact.file("report.html").read_text()
    assert "<td>mine.acc_norm</td>" in page
    assert base64.b64encode(artifact.file("report.png").read_bytes()).decode() in page


def test_the_command_takes_tasks_data_and_gates(
    checkpoint: Artifact,
    store: Store,
    llmctl: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    mine: str,
) -> None:
    imported(checkpoint, store)
    rows, piqa = tmp_path / "mine.jsonl", tmp_path / "piqa.jsonl"
    file_of(rows, ROWS)
    file_of(piqa, [{"goal": text(n, 4), "sol1": text(n, 2), "sol2": text(n + 9, 2), "label": n % 2} for n in range(6)])
    command = ["eval", "tiny", "--tasks", f"{mine},piqa", "--data", f"mine={rows}", "--data", f"piqa={piqa}", "--json"]
    gated = llmctl(*command, "--min", "acc=1.01")
    assert gated.returncode == 6, gated.stderr
    manifest = store.resolve("tiny.eval").manifest  # tests/evals/test_long.py sees an evaluation that exits 0
    assert (manifest.totals["mine.scored"], manifest.totals["piqa.scored"]) == (20, 6)
    assert {"data.mine", "data.piqa", "input"} == set(manifest.inputs)
    end = json.loads(gated.stdout.splitlines()[-1])
    assert (end["ok"], end["code"]) == (False, 6)
    unnamed = llmctl("eval", "tiny", "--tasks", mine, "--data", str(rows))
    assert unnamed.returncode == 2
    assert "write --data NAME=REF" in unnamed.stderr
    alone = llmctl("eval", "--tasks", mine, "--data", f"mine={rows}")
    assert alone.returncode in (2, 4)


class Broken(Answering):
    """Lists a model, and answers every question with what its server holds."""

    def get(self) -> None:
        card = {"id": "m", "max_model_len": 64, "created": time.time_ns(), "permission": [{"id": str(time.time_ns())}]}
        self.say(200, {"data": [card]})

    def post(self, body: Any) -> None:
        del body
        self.say(*self.server.answer)  # type: ignore[attr-defined]


@pytest.fixture
def broken() -> Iterator[ThreadingHTTPServer]:
    ThreadingHTTPServer.request_queue_size = 64
    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "said", "why"),
    [
        ((500, '{"error": {"message": "out of order"}}'), "20 server_error", "HTTP 500: out of order"),
        ((200, "<html>"), "20 bad_answer", "no JSON"),
        ((200, '{"choices": []}'), "20 bad_answer", "IndexError"),
        ((200, '{"choices": [{"logprobs": null}]}'), "20 no_logprobs", "no log-probabilities of a prompt"),
    ],
)
def test_a_server_without_sensible_answers_gives_no_score(
    evals: Evals, mine: str, broken: ThreadingHTTPServer, answer: Any, said: str, why: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr("llmctl.inference.remote.WAIT_S", 0.0)
    broken.answer = answer  # type: ignore[attr-defined]
    address = f"http://127.0.0.1:{broken.server_address[1]}/v1"
    with pytest.raises(InputError, match=f"mine: no item has an answer: {said}") as raised:
        evals.run({"tasks": mine, "server": {"url": address}})
    assert why in raised.value.hint


def test_a_server_that_was_started_anew_has_the_same_model(broken: ThreadingHTTPServer) -> None:
    config = EvalConfig.model_validate({"server": {"url": f"http://127.0.0.1:{broken.server_address[1]}/v1"}})
    cards = [card_of(config.server) for _ in range(2)]
    assert cards == [{"id": "m", "max_model_len": 64}] * 2
    named = [sources(config, Fetched(card=card)) for card in cards]
    assert named[0] == named[1] == ("m.eval", {"server": sha256_of(cards[0])})


def test_a_server_that_is_not_there_is_told_before_anything_runs(evals: Evals, mine: str) -> None:
    with pytest.raises(InputError, match=r"http://127.0.0.1:9/v1: server_error: ConnectionRefusedError"):
        evals.run({"tasks": mine, "server": {"url": "http://127.0.0.1:9/v1"}})
