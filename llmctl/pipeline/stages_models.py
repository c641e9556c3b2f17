"""Stages of weights: trained, read from elsewhere, measured."""

from __future__ import annotations

import dataclasses

from llmctl.pipeline.stage import Role, Stage

TRAINING_FLAGS = {
    "--batch-rows": "batch_rows",
    "--lr": "optimizer.lr",
    "--precision": "precision",
    "--nproc": "nproc",
    "--zero": "zero",
    "--keep": "keep",
    "--seed": "seed",
}
REFERENCE = Role(("checkpoint",), "checkpoint to stay close to; the one to start from where left out", required=False)
PREFERENCES = Role(
    ("preferences",),
    "answers, chosen and rejected or judged: an artifact, a .jsonl or .parquet file, or its URL",
    files=True,
)

CHATS = Role(("chats",), "chats: an artifact, or a .jsonl or .parquet file", files=True)

MODEL_STAGES: tuple[Stage, ...] = (
    Stage(
        command="pretrain",
        then="eval",
        summary="Train a decoder on packed rows.",
        config="llmctl.config.train:PretrainConfig",
        run="llmctl.objectives.pretrain:run",
        derive="llmctl.pipeline.derive:tokenizer_of_rows",
        op_version=2,
        output="checkpoint",
        resumable=True,
        inputs={"input": Role(("rows",), "packed rows to train on")},
        flags={
            "--model": "model.name",
            "--depth": "dial.depth",
            "--params": "dial.params",
            "--steps": "steps",
            **TRAINING_FLAGS,
        },
        examples=(
            "llmctl pretrain web.pack --depth 4",
            "llmctl pretrain web.pack --params 50M --dry-run",
            "llmctl pretrain web.pack --model tiny --steps 200",
            "llmctl pretrain web.pack --model tiny model.layers=6 optimizer.lr=1e-3",
            "llmctl pretrain web.pack --nproc 2 --zero 2",
            "llmctl pretrain web.pack optimizer=muon schedule=wsd average=ema --keep last:3,every:1000,best:1",
            "llmctl pretrain web.pack guard.on_spike=skip guard.on_nan=rollback",
        ),
    ),
    Stage(
        command="sft",
        then="serve",
        summary="Fine-tune on chats, with loss on the answers only.",
        config="llmctl.config.train:SftConfig",
        run="llmctl.objectives.sft:run",
        decides="llmctl.config.lora:kind_of",
        op_version=2,
        output="checkpoint",
        resumable=True,
        inputs={
            "input": Role(("checkpoint",), "checkpoint to start from"),
            "chats": CHATS,
        },
        flags={"--epochs": "epochs", "--inspect": "inspect", **TRAINING_FLAGS},
        examples=(
            "llmctl sft web.pretrain --chats chats.jsonl --epochs 3",
            "llmctl sft web.pretrain --chats dialogues.jsonl learn=last",
            "llmctl sft web.pretrain --chats chats.jsonl 'lora={rank: 16, alpha: 32}' --name web.adapter",
            "llmctl sft web.pretrain --chats chats.jsonl 'lora={base: nf4}' neftune_alpha=5",
        ),
    ),
    Stage(
        command="logprobs",
        summary="Score texts under a model once, for dpo and distill.",
        config="llmctl.config.dpo:LogprobsConfig",
        run="llmctl.objectives.logprobs:run",
        output="logprobs",
        inputs={
            "input": Role(("checkpoint",), "checkpoint to score with"),
            "preferences": dataclasses.replace(PREFERENCES, required=False),
            "chats": dataclasses.replace(CHATS, required=False),
            "rows": Role(("rows",), "packed rows", required=False),
        },
        flags={"--max-tokens": "max_tokens", "--top-k": "top_k", "--precision": "precision"},
        examples=(
            "llmctl logprobs web.sft --preferences pairs.jsonl",
            "llmctl logprobs big.sft --chats chats.jsonl --top-k 64",
            "llmctl logprobs big.pretrain --rows web.pack temperature=2",
        ),
    ),
    Stage(
        command="dpo",
        then="serve",
        summary="Fit a checkpoint to preferences: DPO and relatives.",
        config="llmctl.config.dpo:DpoConfig",
        run="llmctl.objectives.dpo:run",
        decides="llmctl.config.lora:kind_of",
        nests=("logprobs",),
        op_version=2,
        output="checkpoint",
        resumable=True,
        inputs={
            "input": Role(("checkpoint",), "checkpoint to start from"),
            "preferences": PREFERENCES,
            "reference": REFERENCE,
            "logprobs": Role(
                ("logprobs",), "what llmctl logprobs made of the reference; computed where left out", required=False
            ),
        },
        flags={"--loss": "loss.name", "--epochs": "epochs", "--inspect": "inspect", **TRAINING_FLAGS},
        examples=(
            "llmctl dpo web.sft --preferences pairs.jsonl",
            "llmctl dpo python-docs.sft --preferences python-docs.preferences",
            "llmctl dpo web.sft --preferences pairs.parquet --loss ipo loss.beta=0.2",
            "llmctl dpo web.sft --preferences judged.jsonl --loss kto",
            "llmctl dpo web.sft --preferences hf://datasets/OWNER/NAME/data/train-00000-of-00001.parquet",
        ),
    ),
    Stage(
        command="reward",
        summary="Train a reward model on preferences, or on steps.",
        config="llmctl.config.dpo:RewardConfig",
        run="llmctl.objectives.reward:run",
        output="checkpoint",
        resumable=True,
        inputs={
            "input": Role(("checkpoint",), "checkpoint to start from"),
            "preferences": dataclasses.replace(PREFERENCES, required=False),
            "stepwise": Role(
                ("stepwise",),
                "in their place: answers by steps, each labelled right or wrong; a .jsonl or .parquet file",
                required=False,
                files=True,
            ),
        },
        flags={"--epochs": "epochs", "--inspect": "inspect", **TRAINING_FLAGS},
        examples=(
            "llmctl reward web.sft --preferences pairs.jsonl",
            "llmctl reward web.sft --preferences pairs.jsonl loss.margin=true loss.centring=0.01",
            "llmctl reward web.sft --stepwise steps.jsonl",
        ),
    ),
    Stage(
        command="grpo",
        then="serve",
        summary="Improve a checkpoint by rewards for its answers.",
        config="llmctl.config.grpo:GrpoConfig",
        run="llmctl.objectives.grpo:run",
        decides="llmctl.config.lora:kind_of",
        output="checkpoint",
        resumable=True,
        inputs={
            "input": Role(("checkpoint",), "checkpoint to start from"),
            "prompts": Role(
                ("prompts",), "prompts, each with its answer: an artifact, or a .jsonl or .parquet file", files=True
            ),
            "reference": REFERENCE,
            "scorer": Role(("checkpoint",), "reward model, for the reward scorer", required=False),
        },
        flags={
            "--preset": "preset",
            "--reward": "rewards",
            "--group": "group",
            "--prompts-per-rollout": "prompts_per_rollout",
            "--max-new-tokens": "max_new_tokens",
            "--loss-agg": "policy.loss_agg",
            "--adv-norm": "policy.adv_norm",
            "--kl": "policy.kl.weight",
            "--steps": "steps",
            "--epochs": "epochs",
            **{flag: path for flag, path in TRAINING_FLAGS.items() if flag not in ("--nproc", "--zero")},
        },
        examples=(
            "llmctl grpo web.sft --prompts sums.jsonl --reward number",
            "llmctl grpo web.sft --prompts sums.jsonl --reward rewards.py:score --group 16 --kl 0.05",
            "llmctl grpo web.sft --prompts sums.jsonl --preset dapo policy.overlong_tokens=32",
            "llmctl grpo web.sft --prompts sums.jsonl --preset ppo --kl 0.02",
            "llmctl grpo web.sft --prompts ask.jsonl --reward scorer --scorer web.reward --preset rloo",
            "llmctl grpo web.sft --prompts ask.jsonl 'rewards=[number, {kind: length, most: 200, weight: 0.1}]'",
        ),
    ),
    Stage(
        command="synth",
        then="sft",
        summary="Let a teacher answer prompts; keep what passes.",
        config="llmctl.config.synth:SynthConfig",
        run="llmctl.objectives.synth:run",
        output="chats",
        resumable=True,
        inputs={
            "input": Role(("checkpoint",), "teacher"),
            "prompts": Role(
                ("prompts",),
                "prompts, with their answers where rewards look at them: an artifact, or a .jsonl or .parquet file",
                files=True,
                required=False,
            ),
            "chats": dataclasses.replace(
                CHATS, required=False, help=f"{CHATS.help}, whose last answers are given anew"
            ),
        },
        flags={
            "--samples": "samples",
            "--keep": "keep",
            "--reward": "rewards",
            "--max-new-tokens": "max_new_tokens",
            "--temperature": "temperature",
            "--limit": "limit",
            "--seed": "seed",
        },
        examples=(
            "llmctl synth big.sft --prompts questions.jsonl",
            "llmctl synth big.sft --chats chats.jsonl --temperature 1",
            "llmctl synth big.sft --prompts sums.jsonl --samples 8 --reward number",
            "llmctl synth big.sft --prompts sums.jsonl --samples 8 --reward number 'instruction=Think first.'",
        ),
    ),
    Stage(
        command="distill",
        then="eval",
        summary="Fit a smaller model to a teacher's distributions.",
        config="llmctl.config.distill:DistillConfig",
        run="llmctl.objectives.distill:run",
        derive="llmctl.pipeline.derive:rows_to_learn_from",
        nests=("logprobs",),
        output="checkpoint",
        resumable=True,
        inputs={
            "input": Role(("checkpoint",), "teacher"),
            "student": Role(("checkpoint",), "checkpoint to start from; --model makes a fresh one", required=False),
            "chats": dataclasses.replace(CHATS, required=False),
            "rows": Role(("rows",), "packed rows; the teacher's own where left out", required=False),
            "logprobs": Role(
                ("logprobs",), "what llmctl logprobs kept of the teacher on this very text", required=False
            ),
        },
        flags={
            "--model": "model.name",
            "--loss": "loss.name",
            "--top-k": "top_k",
            "--epochs": "epochs",
            "--steps": "steps",
            **TRAINING_FLAGS,
        },
        examples=(
            "llmctl distill big.pretrain --model tiny",
            "llmctl distill big.sft --student small.sft --chats chats.jsonl",
            "llmctl distill big.sft --student small.sft --chats chats.jsonl --top-k 32 loss.temperature=2",
            "llmctl distill big.sft --student small.sft --chats chats.jsonl --loss jsd cross_entropy=0.3",
            "llmctl distill big.sft --student small.sft --chats chats.jsonl --loss reverse_kl on_policy.share=0.5",
        ),
    ),
    Stage(
        command="merge",
        then="serve",
        summary="Merge adapters into a model, or models into one.",
        config="llmctl.config.merge:MergeConfig",
        run="llmctl.objectives.merging:run",
        output="checkpoint",
        inputs={
            "sources": Role(
                ("checkpoint", "adapter"),
                "a checkpoint and adapters of it, or checkpoints, each with its weight",
                many=True,
                share="weights",
            ),
            "base": Role(("checkpoint",), "what the models were tuned from, for task, ties and dare", required=False),
        },
        flags={"--method": "method", "--density": "density", "--seed": "seed"},
        examples=(
            "llmctl merge web.pretrain web.adapter --name web.merged",
            "llmctl merge a.sft=0.7 b.sft=0.3 --method linear",
            "llmctl merge a.sft=0.7 b.sft=0.3 --method slerp",
            "llmctl merge a.sft b.sft --method ties --base web.pretrain --density 0.3",
        ),
    ),
    Stage(
        command="import",
        then="chat",
        summary="Read a model or tokenizer of others.",
        config="llmctl.config.inout:ImportConfig",
        run="llmctl.model.importing:run",
        decides="llmctl.model.located:kind_of",
        fetch="llmctl.model.located:fetch",
        sources="llmctl.model.importing:sources",
        output="checkpoint",
        words="sources",
        flags={"--dtype": "dtype", "--license": "license", "--allow-private": "allow_private"},
        examples=(
            "llmctl import path/to/model --name base",
            "llmctl import hf://HuggingFaceTB/SmolLM2-135M-Instruct",
            "llmctl import model.Q4_K_M.gguf --dtype bf16",
            "llmctl import path/to/tokenizer.json --name words",
        ),
    ),
    Stage(
        command="eval",
        summary="Measure held-out loss, multiple choice and tasks.",
        config="llmctl.config.evals:EvalConfig",
        run="llmctl.evals.stage:run",
        derive="llmctl.pipeline.derive:of_evaluation",
        fetch="llmctl.evals.remote:fetch",
        sources="llmctl.evals.remote:sources",
        gate="llmctl.pipeline.evaluations:check_figures",
        op_version=4,
        output="eval",
        resumable=True,
        inputs={
            "input": Role(("checkpoint",), "checkpoint to measure", instead="server.url"),
            "rows": Role(
                ("rows",), "rows whose held-out split is scored; the training rows where left out", required=False
            ),
            "choices": Role(
                ("prompts",), "multiple-choice questions: an artifact or a .jsonl file", required=False, files=True
            ),
            "data": Role(
                ("prompts", "documents", "chats"),
                "data of a task, TASK=FILE, or of its examples, TASK.SPLIT=FILE; repeat it",
                required=False,
                files=True,
                many=True,
                option=True,
            ),
        },
        flags={
            "--tasks": "tasks",
            "--shots": "shots",
            "--limit": "limit",
            "--chat": "chat",
            "--overlong": "overlong",
            "--min": "min",
            "--model": "server.url",
            "--contamination": "contamination",
            "--forbid-contamination": "forbid_contamination",
            "--batch-tokens": "batch_tokens",
            "--weights": "weights",
        },
        examples=(
            "llmctl eval web.pretrain",
            "llmctl eval web.sft --choices questions.jsonl",
            "llmctl eval web.sft --tasks piqa,arc_easy --data piqa=piqa.jsonl --data arc_easy=arc.parquet",
            "llmctl eval web.sft --tasks gsm8k --data gsm8k=test.jsonl --data gsm8k.train=train.jsonl --limit 200",
            "llmctl eval web.sft --tasks mine.yaml --data mine=mine.jsonl --min mine.acc=0.5",
            "llmctl eval --model http://127.0.0.1:8000/v1 --tasks gsm8k --shots 0 --data gsm8k=test.jsonl",
            "llmctl eval web.sft --weights int4",
        ),
    ),
)
