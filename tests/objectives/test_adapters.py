"""Fine-tuning through an adapter, and the stage `merge`, on real artifacts."""

import json
from dataclasses import replace

import pytest
import torch

from llmctl.cli.summary import summary
from llmctl.config.dpo import DpoConfig
from llmctl.config.errors import ConfigError, InputError, LlmctlError, UsageError
from llmctl.config.inout import ImportConfig
from llmctl.config.load import build
from llmctl.config.merge import MergeConfig
from llmctl.config.train import SftConfig
from llmctl.model import adapters, huggingface, merging
from llmctl.objectives import checkpoint as checkpoint_of
from llmctl.objectives.logprobs import check_made_for
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stages import stage_named
from llmctl.store.artifact import FileInput

from .conftest import QUICK

LORA = {"rank": 4, "alpha": 8}


def sft(**fields):
    given = {**QUICK, "max_tokens": 48, "epochs": 30, "optimizer": {"lr": 2e-2}, "lora": LORA}
    given["heldout_fraction"] = 0.2
    return SftConfig.model_validate({**given, **fields})


def last_loss(made):
    return [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "lora",
    [LORA, {**LORA, "dora": True}, {**LORA, "init": "pissa"}, {**LORA, "base": "nf4"}],
    ids=str,
)
def test_an_adapter_learns_and_merges_to_what_was_measured(stages, checkpoint, chats, lora):
    adapter = stages("sft", sft(lora=lora), input=checkpoint, chats=chats)
    assert adapter.kind == "adapter"
    totals = adapter.manifest.totals
    rows = [row for row in last_loss(adapter) if "loss" in row]
    assert rows[-1]["loss"] < rows[0]["loss"] / 1.5
    assert adapter.manifest.semantic["base"] == checkpoint.digest
    merged = stages("merge", MergeConfig(), **{"sources.a": checkpoint, "sources.b": adapter})
    assert merged.kind == "checkpoint"
    assert merged.manifest.semantic["chat"] is True
    assert adapter.manifest.semantic.get("base_kept") == lora.get("base")
    assert f"next  llmctl merge {checkpoint.ref} {adapter.name}" in list(summary(adapter, "serve"))
    assert f"next  llmctl serve {merged.name}" in list(summary(merged, "serve"))
    # The merged checkpoint has, before any step of its own, the held-out loss that the adapter ended with.
    again = stages("sft", sft(lora=None, steps=1, optimizer={"lr": 1e-12}), input=merged, chats=chats)
    assert again.manifest.totals["heldout_loss"] == pytest.approx(totals["heldout_loss"], rel=1e-5)
    untouched = stages("sft", sft(lora=None, steps=1, optimizer={"lr": 1e-12}), input=checkpoint, chats=chats)
    assert untouched.manifest.totals["heldout_loss"] != pytest.approx(totals["heldout_loss"], rel=1e-2)


@pytest.mark.parametrize("base", ["full", "nf4"])
def test_dpo_trains_an_adapter_whose_reference_is_its_base(stages, checkpoint, tmp_path, base):
    path = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"{n}", "chosen": "one two.", "rejected": "four."} for n in range(12)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    given = {**QUICK, "max_tokens": 48, "steps": 12, "optimizer": {"lr": 2e-2}, "lora": {**LORA, "base": base}}
    config = DpoConfig.model_validate({**given, "heldout_fraction": 0.0})
    made = stages("dpo", config, input=checkpoint, preferences=FileInput.of(path, "preferences"))
    rows = [row for row in last_loss(made) if "loss" in row]
    assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["rewards/margins"] > 0.5
    assert made.kind == "adapter"
    kept = stages.store.find(made.manifest.inputs["logprobs"].digest)
    assert kept.manifest.semantic.get("base", "full") == base
    check_made_for(kept, checkpoint, FileInput.of(path, "preferences"), base)
    with pytest.raises(InputError, match=f"was scored with base={base}, and lora.base is "):
        check_made_for(kept, checkpoint, FileInput.of(path, "preferences"), "nf4" if base == "full" else "full")


@pytest.mark.parametrize(
    "lora", [{**LORA, "init": "pissa"}, {**LORA, "dora": True, "b_lr_ratio": 4, "base": "nf4"}], ids=str
)
def test_an_interrupted_run_ends_as_an_undisturbed_one(stages, checkpoint, chats, lora):
    config = sft(lora=lora, epochs=1, steps=6, checkpoint_every_steps=2)

    class Breaks(Silent):
        def update(self, done, total, unit, **facts):
            if unit == "steps" and done == 5:
                raise OSError("the machine is gone")

    call = Call(stage_named("sft"), config, {"input": checkpoint, "chats": chats})
    with pytest.raises(LlmctlError):
        execute(call, stages.store, Breaks())
    said = []

    class Notes(Silent):
        def note(self, text):
            said.append(text)

    resumed = execute(call, stages.store, Notes()).artifact
    assert any("resuming after step" in text for text in said)
    whole = execute(replace(call, force=True), stages.store, Silent()).artifact
    assert whole.digest == resumed.digest


def test_an_adapter_of_another_checkpoint_is_refused(stages, checkpoint, chats):
    adapter = stages("sft", sft(steps=1), input=checkpoint, chats=chats)
    other = stages("sft", sft(lora=None, steps=1), input=checkpoint, chats=chats)
    with pytest.raises(InputError, match="was trained on another checkpoint than"):
        stages("merge", MergeConfig(), **{"sources.a": other, "sources.b": adapter})
    with pytest.raises(UsageError, match="adapters are merged into one checkpoint"):
        stages("merge", MergeConfig(), **{"sources.a": other, "sources.b": adapter, "sources.c": checkpoint})


def test_an_adapter_of_others_is_imported(stages, checkpoint, chats):
    adapter = stages("sft", sft(steps=2), input=checkpoint, chats=chats)
    imported = stages("import", ImportConfig(sources=[str(adapter.data)]))
    assert imported.kind == "adapter"
    assert imported.manifest.semantic["rank"] == 4
    one, other = (
        stages("merge", MergeConfig(), **{"sources.a": checkpoint, "sources.b": source})
        for source in (adapter, imported)
    )
    assert one.file("model.safetensors").read_bytes() == other.file("model.safetensors").read_bytes()
    config = huggingface.load(checkpoint.data).config
    assert len(adapters.read(imported.data, config, 300)) == 14


@pytest.mark.parametrize(("zero", "lora"), [(0, {**LORA, "base": "nf4", "b_lr_ratio": 4}), (2, LORA)], ids=str)
def test_ranks_train_the_adapter_of_one_process(stages, checkpoint, chats, zero, lora):
    """Each start of two ranks takes seconds; stage 1 is within 2, which shards the gradients too."""
    made = []
    for ranks in ({}, {"nproc": 2, "zero": zero}):
        config = sft(lora=lora, epochs=1, steps=4, clip_norm=1e9, **ranks)
        call = Call(stage_named("sft"), config, {"input": checkpoint, "chats": chats}, force=True)
        made.append(execute(call, stages.store, Silent()).artifact)
    alone, both = ([row["loss"] for row in last_loss(one) if "loss" in row] for one in made)
    assert both == pytest.approx(alone, rel=1e-5)
    config = huggingface.load(checkpoint.data).config
    one, other = (adapters.read(adapter.data, config, 300) for adapter in made)
    for name, factors in one.items():
        torch.testing.assert_close(factors.b, other[name].b, rtol=1e-2, atol=2e-4)
    assert made[0].manifest.semantic == made[1].manifest.semantic


def test_fp8_and_shards_of_everything_are_refused_with_adapters():
    for fields, fault in (
        ({"zero": 3}, "zero=3 shards"),
        ({"precision": "fp8"}, "fp8"),
    ):
        for model in (SftConfig, DpoConfig):
            with pytest.raises(ConfigError, match=fault):
                build(model, [{"lora": LORA, **fields}])
    with pytest.raises(ConfigError, match="take one of them"):
        build(SftConfig, [{"lora": {"dora": True, "init": "pissa"}}])
    with pytest.raises(ConfigError, match="take one of them"):
        build(SftConfig, [{"lora": {"base": "nf4", "init": "pissa"}}])


@pytest.fixture(scope="module")
def tuned(stages, checkpoint, chats):
    return [
        stages("sft", sft(lora=None, steps=2, seed=seed, optimizer={"lr": 1e-2}), input=checkpoint, chats=chats)
        for seed in (1, 2)
    ]


def tensors_of(made):
    return {name: value.float() for name, value in huggingface.load(made.data).state_dict().items()}


@pytest.mark.parametrize("method", ["linear", "slerp", "task", "ties", "dare"])
def test_models_are_merged_by_their_formula(stages, checkpoint, tuned, method):
    config = MergeConfig(method=method, weights={"a": 0.3, "b": 0.9}, density=0.4, seed=5)
    inputs = {"sources.a": tuned[0], "sources.b": tuned[1]}
    if method in ("task", "ties", "dare"):
        with pytest.raises(UsageError, match="adds what was learned to a base"):
            stages("merge", config, **inputs)
        inputs["base"] = checkpoint
    made = tensors_of(stages("merge", config, **inputs))
    base, a, b = (tensors_of(source) for source in (checkpoint, *tuned))
    for name, value in made.items():
        changes = [a[name] - base[name], b[name] - base[name]]
        if method == "dare":
            changes = [
                merging.dropped(change, 0.4, "peft", merging.generator_of(5, source, name))
                for source, change in zip("ab", changes, strict=True)
            ]
        wanted = {
            "linear": lambda: (0.3 * a[name] + 0.9 * b[name]) / 1.2,  # noqa: B023
            "slerp": lambda: merging.slerp(a[name], b[name], 0.75),  # noqa: B023
            "ties": lambda: base[name] + merging.ties(changes, [0.3, 0.9], 0.4, "mergekit"),  # noqa: B023
        }.get(method, lambda: base[name] + 0.3 * changes[0] + 0.9 * changes[1])()  # noqa: B023
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_merged(stages, checkpoint, tuned):
    with pytest.raises(UsageError, match="slerp does not merge 3 models"):
        stages("merge", MergeConfig(method="slerp"), **{f"sources.{n}": checkpoint for n in "abc"})
    with pytest.raises(UsageError, match="linear does not merge 1 models"):
        stages("merge", MergeConfig(), **{"sources.a": checkpoint})
    with pytest.raises(UsageError, match="weights name no source: z"):
        stages("merge", MergeConfig(weights={"z": 1}), **{"sources.a": tuned[0], "sources.b": tuned[1]})
    with pytest.raises(ConfigError, match="positive sum"):
        build(MergeConfig, [{"weights": {"a": -1.0}}])


def test_a_merged_checkpoint_knows_what_no_source_saw(stages, checkpoint, tuned):
    made = stages("merge", MergeConfig(), **{"sources.a": checkpoint, "sources.b": tuned[0]})
    source = checkpoint.manifest.semantic
    assert made.manifest.semantic["heldout_fraction"] == source["heldout_fraction"] == 0.1
    assert made.manifest.semantic["chat"] is True
    assert made.manifest.totals == {"parameters": source["parameters"], "merged": 2}
    fewer = replace(tuned[0], manifest=tuned[0].manifest.model_copy(update={"semantic": {"heldout_fraction": 0.02}}))
    assert checkpoint_of.unseen(checkpoint, fewer, fraction=0.05) == {"heldout_fraction": 0.02}
