"""The peers of bench/train.py, each on the same rows in the same order: `train_peers.py TOOL JOB.json`.

This file imports nothing of llmctl, so that it runs in an interpreter that has only the peers. Prints one JSON line:
seconds of each optimizer step, the parameters, the loss of the last step.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

IGNORE = -100
LR, BETAS, DECAY, CLIP = 3e-3, (0.9, 0.95), 0.1, 1.0


class Clock:
    """Wall and CPU seconds between ticks."""

    def __init__(self) -> None:
        self._wall: list[float] = []
        self._cpu: list[float] = []

    def tick(self) -> None:
        self._wall.append(time.perf_counter())
        self._cpu.append(time.process_time())

    def figures(self, each: int = 1) -> dict[str, list[float]]:
        wall, cpu = self._wall[::each], self._cpu[::each]
        return {"wall": np.diff(wall).tolist(), "cpu": np.diff(cpu).tolist()}


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class Block(nn.Module):
    """Llama's block as nanoGPT would write it: one product for q, k and v, SDPA, no mask of documents."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        width, self.heads, self.kv_heads = shape["width"], shape["heads"], shape["kv_heads"]
        self.head_width = width // self.heads
        self.qkv = nn.Linear(width, (self.heads + 2 * self.kv_heads) * self.head_width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, shape["ffn_width"], bias=False)
        self.up = nn.Linear(width, shape["ffn_width"], bias=False)
        self.down = nn.Linear(shape["ffn_width"], width, bias=False)
        self.norm_1, self.norm_2 = RMSNorm(width, 1e-5), RMSNorm(width, 1e-5)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        B, T, _ = x.shape
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        heads = self.qkv(self.norm_1(x)).view(B, T, sum(sizes), self.head_width).transpose(1, 2)
        q, k, v = heads.split(sizes, dim=1)
        mixed = functional.scaled_dot_product_attention(
            turned(q, cos, sin), turned(k, cos, sin), v, is_causal=True, enable_gqa=self.heads != self.kv_heads
        )
        x = x + self.out(mixed.transpose(1, 2).reshape(B, T, -1))
        normed = self.norm_2(x)
        return x + self.down(functional.silu(self.gate(normed)) * self.up(normed))


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)


class Model(nn.Module):
    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        width, head_width = shape["width"], shape["width"] // shape["heads"]
        self.embed = nn.Embedding(shape["vocab_size"], width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape["layers"]))
        self.norm = RMSNorm(width, 1e-5)
        angles = torch.arange(shape["seq_len"])[:, None] / 10_000 ** (torch.arange(0, head_width, 2) / head_width)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = functional.linear(self.norm(x), self.embed.weight)
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORE)


def nanogpt(job: dict[str, Any], rows: np.ndarray, *, compiled: bool) -> dict[str, Any]:
    """The loop of nanoGPT's train.py: accumulate, clip, fused AdamW, read the loss at each step."""
    plain = Model(job["shape"])
    model = torch.compile(plain) if compiled else plain
    parameters = list(plain.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)
    micro, batch = job["micro_rows"], job["batch_rows"]
    clock, loss = Clock(), math.nan
    clock.tick()
    for first in range(0, len(rows), batch):
        for start in range(first, first + batch, micro):
            part = torch.from_numpy(rows[start : start + micro].astype(np.int64))
            with autocast(job):
                nll = model(part[:, :-1], part[:, 1:]) * (micro / batch)
            nll.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = nll.item() * batch / micro
        clock.tick()
    return {**clock.figures(), "parameters": sum(p.numel() for p in parameters), "loss": loss}


def autocast(job: dict[str, Any]) -> Any:
    bf16 = job["precision"] == "bf16"
    return torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


def trainer(job: dict[str, Any], rows: np.ndarray, *, compiled: bool) -> dict[str, Any]:
    """Hugging Face's Trainer with `LlamaForCausalLM`; no evaluation, no saving, no report."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    shape = job["shape"]
    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["width"],
        intermediate_size=shape["ffn_width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        max_position_embeddings=shape["seq_len"],
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            row = torch.from_numpy(rows[index, :-1].astype(np.int64))
            return {"input_ids": row, "labels": row}

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

    class Ticks(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.tick()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=job["micro_rows"],
            gradient_accumulation_steps=job["batch_rows"] // job["micro_rows"],
            num_train_epochs=1,
            learning_rate=LR,
            adam_beta2=BETAS[1],
            weight_decay=DECAY,
            max_grad_norm=CLIP,
            optim="adamw_torch_fused",
            bf16=job["precision"] == "bf16",
            use_cpu=True,
            torch_compile=compiled,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        done = InOrder(model=model, args=settings, train_dataset=Rows(), callbacks=[Ticks()]).train()
    return {**clock.figures(), "parameters": model.num_parameters(), "loss": done.training_loss}


def litgpt(job: dict[str, Any], rows: np.ndarray, *, compiled: bool) -> dict[str, Any]:
    """`litgpt.pretrain.setup` itself, which compiles; the clock is in the rows that we hand it."""
    from litgpt import Config
    from litgpt import pretrain as loop
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import DataModule

    shape, micro = job["shape"], job["micro_rows"]
    clock = Clock()
    given: list[Any] = []

    class Watched:
        def __len__(self) -> int:
            return len(rows) // micro

        def __iter__(self) -> Iterator[torch.Tensor]:
            for start in range(0, len(rows), micro):
                clock.tick()
                yield torch.from_numpy(rows[start : start + micro].astype(np.int64))

    class Rows(DataModule):
        def connect(self, *_: Any, **__: Any) -> None:
            pass

        def __str__(self) -> str:  # Lightning's asks the loaders for more than ours have
            return "the rows of the job"

        def train_dataloader(self) -> Any:
            return Watched()

        def val_dataloader(self) -> Any:
            return [torch.from_numpy(rows[:micro].astype(np.int64))]

    config = Config(
        name="same",
        block_size=shape["seq_len"],
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
        n_layer=shape["layers"],
        n_head=shape["heads"],
        n_embd=shape["width"],
        n_query_groups=shape["kv_heads"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=shape["ffn_width"],
    )
    if not compiled:
        torch.compile = lambda model, *_, **__: model
    plain = loop.L.Fabric.setup_dataloaders
    loop.L.Fabric.setup_dataloaders = lambda _self, *loaders, **__: loaders
    keep = loop.save_checkpoint
    loop.save_checkpoint = lambda _fabric, state, *_: given.append(state)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        loop.setup(
            "",
            model_config=config,
            out_dir=Path(folder),
            precision="bf16-mixed" if job["precision"] == "bf16" else "32-true",
            data=Rows(),
            train=TrainArgs(
                save_interval=None,
                log_interval=1,
                global_batch_size=job["batch_rows"],
                micro_batch_size=micro,
                max_tokens=len(rows) * shape["seq_len"],
                max_norm=CLIP,
                lr_warmup_steps=1,
                min_lr=1e-4,
                tie_embeddings=True,
            ),
            eval=EvalArgs(interval=10**6, max_iters=1, initial_validation=False, final_validation=False),
            optimizer={
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": LR, "betas": BETAS, "weight_decay": DECAY},
            },
            devices=1,
            logger_name="csv",
        )
    loop.L.Fabric.setup_dataloaders, loop.save_checkpoint = plain, keep
    clock.tick()
    each = job["batch_rows"] // micro
    model = given[-1]["model"]
    parameters = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    return {**clock.figures(each), "parameters": parameters, "loss": None}


TOOLS = {"nanogpt": nanogpt, "trainer": trainer, "litgpt": litgpt}


def main() -> None:
    tool, path = sys.argv[1:]
    job = json.loads(Path(path).read_text())
    name, _, compiled = tool.partition("+")
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    rows = np.load(job["rows"])
    result = TOOLS[name](job, rows, compiled=bool(compiled))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
