"""The command line through real processes."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from llmctl.cli.main import OTHERS
from llmctl.pipeline.stages import STAGES
from llmctl.store.manifest import Manifest, content_digest
from llmctl.store.store import Store, describe_files
from tests.evals.tiny import write_checkpoint

TEXT = "The house of data has many rooms and every page that comes in goes down to the tokens.\n" * 8


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_text(
            f"Page {i} tells its own story with some words in it. {TEXT if i == 0 else ''}\n"
        )
    return folder


def receipts(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_help_lists_every_command_in_the_order_of_the_line(llmctl: Any) -> None:
    shown = llmctl("--help")
    assert shown.returncode == 0
    listed = re.findall(r"^  ([a-z][a-z-]+)  +[A-Z]", shown.stdout, re.MULTILINE)
    assert listed == [*STAGES, *OTHERS]


def test_help_shows_what_holds_in_this_stage(llmctl: Any) -> None:
    for command, rate in (("pretrain", "0.003"), ("sft", "0.0005"), ("dpo", "2e-05")):
        about = " ".join(llmctl(command, "--help").stdout.split())
        assert f"Peak learning rate, reached at the end of the warm-up. [default: {rate}]" in about
    assert "--loss sigmoid|robust|hinge|ipo|sigmoid_norm|simpo|cpo|orpo|rrhf|kto which loss [default: sigmoid]" in about


@pytest.mark.parametrize("command", [*STAGES, *OTHERS])
def test_every_command_has_help_with_examples_first(llmctl: Any, command: str) -> None:
    shown = llmctl(command, "--help")
    assert shown.returncode == 0, shown.stderr
    assert 0 < shown.stdout.index("Examples:") < shown.stdout.index("Options:")
    assert f"llmctl {command}" in shown.stdout


def test_python_m_and_version(llmctl: Any) -> None:
    assert re.fullmatch(r"llmctl \d+\.\d+\.\d+\n", llmctl("--version").stdout)


def test_a_stage_in_a_pipe_gives_receipts(llmctl: Any, notes: Path) -> None:
    done = llmctl("collect", str(notes))
    begin, end = receipts(done.stdout)
    assert (begin["t"], begin["proto"], begin["command"], begin["kind"]) == (
        "begin", "llmctl.receipt/1", "collect", "documents",
    )  # fmt: skip
    assert (end["ok"], end["ref"], end["cached"]) == (True, "notes@v1", False)
    assert "notes@v1: 3 documents" in done.stderr
    assert receipts(llmctl("collect", str(notes)).stdout)[1]["cached"] is True


def test_quiet_prints_the_name_only(llmctl: Any, notes: Path) -> None:
    done = llmctl("collect", str(notes), "-q")
    assert (done.stdout, done.stderr) == ("notes@v1\n", "")


def test_receipts_flow_through_stdin(llmctl: Any, notes: Path) -> None:
    stream = llmctl("collect", str(notes)).stdout
    overrides = ("quality.enabled=false", "repetition.enabled=false")
    done = llmctl("clean", *overrides, stdin=stream)
    assert receipts(done.stdout)[1]["ref"] == "notes.clean@v1"
    assert receipts(llmctl("clean", "-", *overrides, stdin=stream).stdout)[1]["cached"] is True
    again = llmctl("cat", "notes").stdout
    assert receipts(llmctl("clean", *overrides, stdin=again).stdout)[1]["cached"] is True


@pytest.mark.parametrize("stream", ["", "torn", '{"t":"begin","proto":"llmctl.receipt/1","command":"collect"}\n'])
def test_a_broken_pipe_stops_the_line(llmctl: Any, notes: Path, stream: str) -> None:
    llmctl("collect", str(notes))
    done = llmctl("clean", stdin=stream)
    assert done.returncode == 4
    end = receipts(done.stdout)[-1]
    assert (end["t"], end["ok"], end["code"]) == ("end", False, 4)
    assert [line.split()[0] for line in llmctl("ls", "-q").stdout.splitlines()] == ["notes@v1"]


def test_a_wrong_kind_in_the_pipe(llmctl: Any, notes: Path) -> None:
    done = llmctl("pack", stdin=llmctl("collect", str(notes)).stdout)
    assert done.returncode == 3
    assert "notes@v1 is a documents artifact; pack takes tokens as input" in done.stderr


def test_no_input_at_all(llmctl: Any) -> None:
    done = llmctl("clean")
    assert done.returncode == 2
    assert "clean needs documents to read" in done.stderr
    assert "an argument or a pipe" in done.stderr


def test_unknown_keys_are_found_before_any_work(llmctl: Any, notes: Path) -> None:
    done = llmctl("dedup", "notes", "treshold=0.7", "permutations=many")
    assert done.returncode == 2
    assert "treshold: unknown key (did you mean threshold?)" in done.stderr
    assert "permutations: " in done.stderr
    assert not (notes.parent / "artifacts").exists()


def test_faults_of_configuration_name_and_inputs_come_together(llmctl: Any, notes: Path) -> None:
    done = llmctl("sft", "nope", "stepz=3", "seed=[", "one", "too-many", "--name", "a b", "--chats", "gone.jsonl")
    assert done.returncode == 2
    faults = done.stderr.splitlines()[1:]
    assert [fault.split()[0] for fault in faults] == ["one:", "seed:", "'a", "no", "no"]
    done = llmctl("sft", "nope", "stepz=3", "seed=-1")
    assert [line.split()[0] for line in done.stderr.splitlines()[1:]] == ["seed:", "stepz:", "no", "sft"]
    assert "sft needs chats: an artifact, or a .jsonl" in done.stderr
    assert done.stdout == ""
    assert not (notes.parent / "artifacts").exists()


def test_several_missing_inputs_stand_on_lines_of_their_own(llmctl: Any, notes: Path) -> None:
    llmctl("collect", str(notes))
    done = llmctl("sft", "nope", "--chats", "none")
    assert done.returncode == 3
    assert done.stderr.splitlines()[0] == "llmctl sft: 2 faults:"
    assert receipts(done.stdout)[-1]["code"] == 3


def test_unknown_command_and_flag(llmctl: Any) -> None:
    assert llmctl("colect").returncode == 2
    assert llmctl("collect", "--nope").returncode == 2


def test_environment_and_flag_precedence(llmctl: Any) -> None:
    shown = llmctl(
        "dedup", "--print-config", "--threshold", "0.6", LLMCTL_DEDUP__THRESHOLD="0.7", LLMCTL_DEDUP__NGRAM_WORDS="9"
    )
    config = json.loads(shown.stdout)
    assert (config["threshold"], config["ngram_words"]) == (0.6, 9)


def test_dry_run_publishes_nothing(llmctl: Any, notes: Path) -> None:
    llmctl("collect", str(notes))
    done = llmctl("dedup", "notes", "--dry-run")
    plan = json.loads(done.stdout)
    assert (plan["name"], plan["cached"]) == ("notes.dedup", False)
    assert llmctl("ls", "-q").stdout == "notes@v1\n"


def test_dry_run_needs_no_store_and_makes_none(llmctl: Any, notes: Path) -> None:
    done = llmctl("collect", str(notes), "--dry-run")
    assert (done.returncode, json.loads(done.stdout)["name"]) == (0, "notes")
    assert llmctl("clean", "notes", "--dry-run").returncode == 3
    assert not (notes.parent / "artifacts").exists()


def test_dry_run_of_a_recipe_looks_at_its_inputs(llmctl: Any, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("version: 1\nsteps:\n  clean: {in: none}\n  dedup: {in: nope@v2}\n")
    done = llmctl("run", "small.yaml", "--dry-run")
    assert (done.returncode, done.stdout) == (3, "")
    assert "step clean: no artifact is called 'none'" in done.stderr
    assert "step dedup: no artifact is called 'nope'" in done.stderr
    assert not (tmp_path / "artifacts").exists()
    (tmp_path / "small.yaml").write_text(
        "version: 1\nsteps:\n  collect: {with: {sources: [x]}}\n  clean: {in: collect}\n"
    )
    assert llmctl("run", "small.yaml", "--dry-run").returncode == 0


def test_half_a_launcher_is_none(llmctl: Any, notes: Path) -> None:
    assert llmctl("collect", str(notes), WORLD_SIZE="many").returncode == 0  # no launcher sets it without RANK


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """The reference of an untrained checkpoint in the store."""
    store = Store.open(tmp_path / "artifacts", create=True)
    run, held = store.begin("tiny", "01A")
    with held:
        shutil.copytree(write_checkpoint(tmp_path / "model"), run.data, dirs_exist_ok=True)
        files = describe_files(run)
        fields: dict[str, Any] = {
            "kind": "checkpoint", "schema": "s/1", "digest": content_digest("checkpoint", "s/1", {}, files),
            "files": files, "totals": {}, "semantic": {}, "inputs": {}, "license": [],
            "producer": {"command": "t", "op_version": 1, "llmctl": "0", "argv": [], "config": {}, "action_key": "0"},
            "run": {"id": "01A", "started": "", "finished": "", "host": ""},
        }  # fmt: skip
        pointer = store.commit(run, Manifest.model_validate(fields))
    return store.publish_version("tiny", pointer).ref


def test_chat_answers_each_question_alone_or_the_terminal_in_one_talk(llmctl: Any, checkpoint: str) -> None:
    asked = llmctl("chat", checkpoint, "why?", "what?", "why?", "--max-tokens", "3", "--device", "cpu", "--json")
    assert asked.returncode == 0, asked.stderr
    answers = receipts(asked.stdout)
    assert [row["question"] for row in answers] == ["why?", "what?", "why?"]
    assert answers[0] == answers[2]
    typed = llmctl("chat", checkpoint, "max_tokens=3", "device=cpu", "--json", stdin="why?\n\n what?\n")
    assert [row["question"] for row in receipts(typed.stdout)] == ["why?", "what?"]
    assert receipts(typed.stdout)[0] == answers[0]
    piped = llmctl("chat", "-", "why?", "max_tokens=3", "device=cpu", "--json", stdin=llmctl("cat", checkpoint).stdout)
    assert receipts(piped.stdout) == answers[:1]
    assert llmctl("chat", "-", stdin=llmctl("cat", checkpoint).stdout).returncode == 2


def test_chat_is_configured_as_every_command(llmctl: Any) -> None:
    shown = llmctl("chat", "web", "why?", "precision=bf16", "--print-config", LLMCTL_CHAT__TEMPERATURE="0.5")
    assert json.loads(shown.stdout) == {
        "questions": ["why?"], "temperature": 0.5, "max_tokens": 128, "device": "auto", "precision": "bf16",
        "weights": "plain",
    }  # fmt: skip
    wrong = llmctl("chat", "web", "why?", "temprature=1", "--max-tokens", "0")
    assert wrong.returncode == 2
    assert "temprature: unknown key (did you mean temperature?)" in wrong.stderr
    assert "max_tokens: Input should be greater than or equal to 1" in wrong.stderr
    assert "no artifact is called 'web'" in wrong.stderr


def test_show_verify_lineage_and_ls(llmctl: Any, notes: Path) -> None:
    llmctl("collect", str(notes))
    llmctl("clean", "notes", "quality.enabled=false", "repetition.enabled=false")
    assert "part-00000.parquet" in llmctl("show", "notes.clean").stdout
    assert json.loads(llmctl("show", "notes.clean", "--json").stdout)["kind"] == "documents"
    tree = llmctl("lineage", "notes.clean").stdout
    assert tree.index("notes.clean@v1") < tree.index("notes@v1  documents")
    assert llmctl("verify", "--all").stdout == "2 checked, 0 faults\n"
    (part,) = (notes.parent / "artifacts" / "notes.clean").glob("*/data/part-00000.parquet")
    part.chmod(0o644)
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    broken = llmctl("verify", "notes.clean")
    assert broken.returncode == 5
    assert "part-00000.parquet does not match its sha256" in broken.stdout


def test_every_reader_says_what_is_missing(llmctl: Any) -> None:
    for command in (
        ["ls"],
        ["show", "x"],
        ["cat", "x"],
        ["verify", "--all"],
        ["lineage", "x"],
        ["serve", "x"],
        ["chat", "x"],
    ):
        done = llmctl(*command)
        assert done.returncode == 3, command
        assert "there is no store at artifacts" in done.stderr


def test_nothing_but_receipts_reaches_stdout(tmp_path: Path) -> None:
    """A library that prints, even from C, cannot tear the stream."""
    import subprocess

    code = (
        "import os\n"
        "from llmctl.cli.output import Sink\n"
        "sink = Sink('x', as_json=True)\n"
        "print('from python'); os.write(1, b'from c\\n'); os.system('echo from a child')\n"
        "sink.write_json({'t': 'begin'})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == '{"t": "begin"}\n'
    assert "from c" in done.stderr
    assert "from a child" in done.stderr


def test_a_bug_ends_the_stream_and_exits_1(tmp_path: Path) -> None:
    import subprocess

    code = (
        "from llmctl.cli.output import Sink\n"
        "from llmctl.cli.failures import guarded\n"
        "sink = Sink('x', as_json=True)\n"
        "sink.begin({'t': 'begin'})\n"
        "guarded(sink, lambda: 1 / 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1])["code"] == 1
    assert "bug: ZeroDivisionError" in done.stderr
