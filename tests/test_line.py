"""The whole line as a user types it, in `sh`, with real processes: what issue after issue must keep true."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from llmctl.data.rollouts import FILE as ROLLOUTS
from llmctl.store.artifact import Artifact
from llmctl.store.store import Store
from llmctl.store.verify import verify_store
from tests.conftest import LLMCTL, environment

REWARDS = [{"kind": "regex", "pattern": "[ae]"}]
RECIPES = Path(__file__).parents[1] / "recipes"
WORDS = (
    "data flows through the house and every page goes down to the tokens before it comes up again as an answer".split()
)
STAGES = ("collect", "clean", "dedup", "tokenize", "pack", "pretrain", "eval")
LINE = (
    "llmctl collect notes | llmctl clean | llmctl dedup | llmctl tokenize --vocab-size 300 | llmctl pack --seq-len 64"
    " heldout_fraction=0.1 | llmctl pretrain --model nano --steps 6 batch_rows=4 | llmctl eval"
)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Sixty different pages of real words, long enough for the Gopher rules."""
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(60):
        sentences = []
        for j in range(8):
            turn = [WORDS[(i * 7 + j * (i + 3) + k * (1 + (i + j) % 5)) % len(WORDS)] for k in range(10)]
            sentences.append(" ".join([*turn, f"number{i}x{j}"]) + ".")
        (folder / f"{i:02}.txt").write_text(
            "The notes of this page have to be read with care.\n" + "\n".join(sentences) + "\n"
        )
    return folder


def digests(root: Path) -> dict[str, str]:
    store = Store.open(root)
    return {ref: store.resolve(ref).digest for name in store.names() for ref in store.versions(name)}


def losses(root: Path, name: str) -> list[float]:
    """The training loss of every step, exactly as logged."""
    rows = [
        json.loads(line) for line in (Store.open(root).resolve(name).path / "metrics.jsonl").read_text().splitlines()
    ]
    return [row["loss"] for row in rows if "loss" in row and "step" in row]


def test_the_line_works_hits_the_cache_and_repeats_itself(shell: Any, notes: Path, tmp_path: Path) -> None:
    first = shell(LINE)
    assert first.returncode == 0, first.stderr
    end = json.loads(first.stdout.splitlines()[-1])
    assert (end["ok"], end["ref"], end["cached"]) == (True, "notes.eval@v1", False)
    again = shell(LINE)
    assert json.loads(again.stdout.splitlines()[-1])["cached"] is True
    assert again.stderr.count("(cached)") == len(STAGES)
    other = shell(LINE, LLMCTL_STORE="second")
    assert other.returncode == 0, other.stderr
    one, two = digests(tmp_path / "artifacts"), digests(tmp_path / "second")
    assert one == two
    assert set(one) == {f"notes{suffix}@v1" for suffix in ("", *(f".{stage}" for stage in STAGES[1:]), ".tokenizer")}
    assert losses(tmp_path / "artifacts", "notes.pretrain") == losses(tmp_path / "second", "notes.pretrain")
    assert verify_store(Store.open(tmp_path / "artifacts"), full=True) == (8, [])


@pytest.mark.parametrize("victim", STAGES)
def test_a_killed_stage_publishes_nothing_after_it(shell: Any, notes: Path, tmp_path: Path, victim: str) -> None:
    """The victim kills itself with SIGKILL once its inputs are there and before its commit."""
    killer = tmp_path / "killer"
    killer.mkdir()
    (killer / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        f"if len(sys.argv) > 1 and {victim!r} in sys.argv[1:2]:\n"
        "    import llmctl.store.store as store\n"
        "    store.Store.commit = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    line = LINE.replace(f"llmctl {victim}", f"PYTHONPATH={killer} llmctl {victim}")
    done = shell(line)
    assert done.returncode != 0
    assert done.returncode == (137 if victim == STAGES[-1] else 4), done.stderr
    published = digests(tmp_path / "artifacts")
    before = STAGES[: STAGES.index(victim)]
    made = {ref.partition("@")[0].partition(".")[2] or "collect" for ref in published} - {"tokenizer"}
    assert made == set(before)
    assert verify_store(Store.open(tmp_path / "artifacts"), full=True)[1] == []
    mended = shell(LINE)
    assert mended.returncode == 0, mended.stderr


def test_the_demo_goes_from_documentation_to_a_gain_on_held_out_pairs(llmctl: Any, tmp_path: Path) -> None:
    """The recipe itself, its numbers made small, on made-up documentation."""
    recipe = YAML(typ="safe").load((RECIPES / "demo.yaml").read_text())
    chance, known = random.Random(1), sorted(set(WORDS))
    with open(tmp_path / "docs.jsonl", "w") as lines:
        for number in range(150):
            name = ("zip", "xyz", "quo")[number % 3]  # which tells the words of the answer
            said = " ".join(chance.sample(known[number % 3 :: 3], 6)).capitalize()
            text = f"m{number}.{name}{number}(a)\n\n{said}."
            lines.write(json.dumps({"id": f"python-docs/m{number}.{name}{number}", "text": text}) + "\n")
    small = {
        "collect": {"sources": ["docs.jsonl"]},
        "tokenize": {"train": {"vocab_size": 400}},
        "pack": {"seq_len": 64},
        "pretrain": {"model": "nano", "steps": 4, "batch_rows": 4},
        "sft": {"steps": 4, "batch_rows": 4, "max_tokens": 128},
        "quiz": {"choices": 2},
        "dpo": {"steps": 15, "max_tokens": 128, "row_tokens": 256, "optimizer": {"lr": 1e-3}},
        "grpo": {"steps": 2, "group": 4, "prompts_per_rollout": 2, "max_new_tokens": 8, "rewards": REWARDS},
        "small": {"steps": 2, "batch_rows": 2},
        "alone": {"steps": 2, "max_tokens": 128},
        "distill": {"steps": 2, "max_tokens": 128},
    }
    for step, fields in small.items():
        recipe["steps"][step]["with"] = {**recipe["steps"][step]["with"], **fields}
    for step in ("chats", "preferences", "quiz", "pack"):
        recipe["steps"][step]["with"]["heldout_fraction"] = 0.2
    del recipe["steps"]["sft"]["with"]["epochs"], recipe["steps"]["dpo"]["with"]["epochs"]
    (tmp_path / "small.yaml").write_text(json.dumps(recipe))
    done = llmctl("run", "small.yaml")
    assert done.returncode == 0, done.stderr
    store = Store.open(tmp_path / "artifacts")
    totals = store.resolve("demo.dpo").manifest.totals
    assert totals["heldout_rewards/margins"] > 0.2  # and 0 before
    assert totals["heldout_logps/margins"] > totals["before_heldout_logps/margins"]
    assert f"{totals['heldout_pairs']} held-out pairs, before and after: loss" in done.stderr
    evaluated = store.resolve("demo.eval").manifest
    assert evaluated.inputs["input"].digest == store.resolve("demo.dpo").digest
    check_rewards(store.resolve("demo.grpo"))
    student, alone = store.resolve("demo.distill").manifest, store.resolve("demo.alone").manifest
    assert student.inputs["input"].digest == store.resolve("demo.grpo").digest
    assert student.inputs["student"] == alone.inputs["input"]
    assert student.totals["heldout_targets"] == alone.totals["heldout_targets"] > 0  # both figures are of the same text


def check_rewards(policy: Artifact) -> None:
    """Every answer was judged, and the likeliest ones to held-out questions before and after."""
    rows = pq.read_table(policy.data / ROLLOUTS).to_pylist()
    assert len(rows) == 2 * 8
    for row in rows:
        assert row["reward"] == float(bool(set("ae") & set(row["completion"])))
    totals = policy.manifest.totals
    assert totals["heldout_prompts"] > 0
    assert 0 <= totals["before_heldout_reward"] <= 1
    assert 0 <= totals["heldout_reward"] <= 1


def wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def train(tmp_path: Path, store: str, *extra: str) -> subprocess.Popen[str]:
    command = ["pretrain", "notes.pack", "--model", "nano", "--steps", "40", "batch_rows=4", "checkpoint_every_steps=5"]
    return subprocess.Popen(
        [*LLMCTL, *command, "--precision", "fp32", *extra],
        cwd=tmp_path,
        env=environment(LLMCTL_STORE=store),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def packed(shell: Any, notes: Path, tmp_path: Path) -> Iterator[Path]:
    done = shell(LINE.partition(" | llmctl pretrain")[0])
    assert done.returncode == 0, done.stderr
    yield tmp_path / "artifacts"
    shutil.rmtree(tmp_path / "artifacts", ignore_errors=True)


def test_a_killed_pretrain_resumes_bitwise(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "whole")
    whole = train(tmp_path, "whole")
    assert whole.wait(timeout=300) == 0, whole.stderr.read()
    victim = train(tmp_path, "artifacts")
    wait_for(lambda: list(packed.glob("notes.pretrain/*/work/step-*[0-9]")))
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert not (packed / "notes.pretrain" / "refs").exists()
    resumed = train(tmp_path, "artifacts")
    output, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    assert json.loads(output.splitlines()[-1])["cached"] is False
    assert len(list((packed / "notes.pretrain").glob("*/manifest.json"))) == 1
    assert losses(packed, "notes.pretrain") == losses(tmp_path / "whole", "notes.pretrain")
    assert len(losses(packed, "notes.pretrain")) == 40
    one, two = Store.open(packed).resolve("notes.pretrain"), Store.open(tmp_path / "whole").resolve("notes.pretrain")
    assert one.digest == two.digest


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_ranks_follow_the_single_process(packed: Path, tmp_path: Path, zero: int) -> None:
    shutil.copytree(packed, tmp_path / "ranks")
    alone = train(tmp_path, "artifacts", "--steps", "12")
    assert alone.wait(timeout=300) == 0, alone.stderr.read()
    ranks = train(tmp_path, "ranks", "--steps", "12", "--nproc", "2", "--zero", str(zero))
    output, errors = ranks.communicate(timeout=600)
    assert ranks.returncode == 0, errors[-3000:]
    assert [json.loads(line)["t"] for line in output.splitlines()][::-1][0] == "end"
    expected, got = losses(packed, "notes.pretrain"), losses(tmp_path / "ranks", "notes.pretrain")
    assert got == pytest.approx(expected, rel=2e-4)
    assert Store.open(tmp_path / "ranks").resolve("notes.pretrain").data.joinpath("model.safetensors").is_file()


@pytest.mark.slow
def test_ranks_of_an_outside_launcher(packed: Path, tmp_path: Path) -> None:
    """As `deepspeed --module llmctl pretrain …`: every rank is a whole command, one of them leads."""
    settings = ["pretrain", "notes.pack", "--model", "nano", "--steps", "4", "batch_rows=4", "--precision", "fp32"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "llmctl"]
    for cached in (False, True):
        done = subprocess.run(
            [*launcher, *settings],
            cwd=tmp_path,
            env=environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        begin, end = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
        assert (begin["command"], end["ref"], end["cached"]) == ("pretrain", "notes.pretrain@v1", cached)
    assert len(losses(packed, "notes.pretrain")) == 4


def test_a_step_can_be_read(llmctl: Any, packed: Path) -> None:
    shown = llmctl("show", "notes.pack", "--step", "2", "--seed", "0", "--batch-rows", "4", "--json")
    pieces = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len({piece["row"] for piece in pieces}) == 4
    assert all(0 < piece["tokens"] <= 64 for piece in pieces)
    whole = next(piece for piece in pieces if piece["start"] == 0)
    assert whole["text"].startswith("The notes of this page have to be read with care.\n"[: len(whole["text"])])


def test_racing_publishers_give_two_versions(notes: Path, tmp_path: Path) -> None:
    shutil.copytree(notes, tmp_path / "others")
    (tmp_path / "others" / "00.txt").write_text("Another first page, so that this is another run.\n")
    racers = [
        subprocess.Popen(
            [*LLMCTL, "collect", folder, "--name", "pages"],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        for folder in ("notes", "others")
    ]
    refs = set()
    for racer in racers:
        output, _ = racer.communicate(timeout=120)
        assert racer.returncode == 0
        refs.add(json.loads(output.splitlines()[-1])["ref"])
    assert refs == {"pages@v1", "pages@v2"}
    assert verify_store(Store.open(tmp_path / "artifacts"), full=True) == (2, [])


def test_bad_input_is_one_clear_line(llmctl: Any, notes: Path, tmp_path: Path) -> None:
    """Each case: the exit code, and what the message must name. The store stays valid throughout."""
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "torn.txt.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03KL")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "empty").mkdir()
    assert llmctl("collect", "notes").returncode == 0
    assert llmctl("clean", "notes").returncode == 0
    assert llmctl("tokenize", "notes.clean", "--vocab-size", "300").returncode == 0
    cases = [
        (["collect", "nowhere"], 3, "nowhere"),
        (["collect", "broken.jsonl"], 3, "line 2"),
        (["collect", "latin.txt"], 3, "UTF-8"),
        (["collect", "torn.txt.gz"], 3, "torn.txt.gz"),
        (["collect", "torn.parquet"], 3, "torn.parquet"),
        (["collect", "empty"], 3, "no document"),
        (["tokenize", "notes.clean", "--vocab-size", "60000"], 2, "--vocab-size"),
        (["pack", "notes.tokenize", "--seq-len", "1"], 2, "seq_len"),
        (["pack", "notes.clean"], 3, "documents artifact"),
        (["pretrain", "notes.tokenize"], 3, "tokens artifact"),
        (["clean", "notes", "qualty.min_words=3"], 2, "did you mean quality"),
        (["pretrain", "none"], 3, "no artifact is called 'none'"),
    ]
    for arguments, code, named in cases:
        done = llmctl(*arguments)
        assert (done.returncode, named in done.stderr) == (code, True), f"{arguments}: {done.returncode} {done.stderr}"
        assert "Traceback" not in done.stderr
        assert len([line for line in done.stderr.splitlines() if named in line]) == 1, done.stderr
    checked = llmctl("verify", "--all")
    assert (checked.returncode, checked.stdout) == (0, "4 checked, 0 faults\n")


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root reads everything")
def test_no_permission() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o777)
        (place / "notes").mkdir(mode=0o000)
        as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
        done = subprocess.run(
            [*as_nobody, *LLMCTL, "collect", str(place / "notes"), "--store", str(place / "store")],
            cwd="/",
            env=environment(PYTHONPATH=str(Path(__file__).parents[1])),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        (place / "notes").chmod(0o700)
        if not done.stderr.startswith("llmctl collect"):
            pytest.skip("the interpreter itself cannot be read by another user")
        assert done.returncode == 3, done.stderr
        assert f"no permission for {place / 'notes'}" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small tmpfs needs root")
def test_a_full_disk(llmctl: Any, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (tmp_path / "big.txt").write_bytes(b"".join(os.urandom(30).hex().encode() + b"\n" for _ in range(20_000)))
        (tmp_path / "one.txt").write_text("One short page.")
        assert llmctl("collect", "one.txt", "--store", str(small / "s")).returncode == 0
        done = llmctl("collect", "big.txt", "--store", str(small / "s"))
        assert done.returncode == 3, done.stderr
        assert "is full" in done.stderr
        assert "free space" in done.stderr
        assert llmctl("verify", "--all", "--store", str(small / "s")).stdout == "1 checked, 0 faults\n"
    finally:
        subprocess.run(["umount", str(small)], check=True)
