"""Rollouts: answers of the policy, with the ids and log-probabilities that it drew, as rows of a table.

What is learned from are these very ids; text is never encoded again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from llmctl.config.policy import PolicyConfig
from llmctl.inference.request import Request
from llmctl.model.transformer import Transformer
from llmctl.objectives.advantages import deviations
from llmctl.objectives.prompts import Prompt
from llmctl.objectives.sampling import continued, drawn
from llmctl.store.files import publish_bytes
from llmctl.tokens.tokenizer import Tokenizer

Doubles = NDArray[np.float64]
FIGURES: Final = b"llmctl.figures"  # in the metadata of a rollout's file while the run lasts
TURNS = pa.list_(pa.struct({"role": pa.string(), "text": pa.string(), "failed": pa.bool_()}))


@dataclass(frozen=True)
class Turn:
    """One turn of an answer with tools.

    Attributes:
        role: `assistant` or `tool`.
        text: what it said, or what the tool gave.
        failed: whether that is an error.
    """

    role: str
    text: str
    failed: bool = False


@dataclass(frozen=True)
class Drawn:
    """What was said to one request; attributes as those of `Answer`."""

    ids: NDArray[np.int64]
    logps: Doubles
    text: str
    truncated: bool
    own: NDArray[np.bool_] | None = None
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Answer:
    """One answer of a rollout. It has n ids, of which the policy drew m; the others, if any, are the outputs of tools.

    Attributes:
        prompt: number of its prompt among those to learn on.
        ids: int64 [n], m > 0: as sampled, the one that ended it among them.
        logps: float64 [m], natural log of the probability that each was drawn with.
        text: decoded; with tools, of its last turn.
        truncated: whether it was cut at the longest length, or before a call that it may not make.
        reward: of all rewards; NaN where one is missing.
        parts: each reward by name.
        missing: why it is missing.
        advantage: that its tokens get; 0 where the reward is missing.
        old: float64 [m], as `logps`, computed by the trainer; None where the engine's are taken.
        reference: float64 [m], of the reference model; None where there is none.
        values: float64 [m], what a value head expected before each token; None where there is none.
        returns: float64 [m], what it should have expected.
        advantages: float64 [m], of each token; None where `advantage` is that of all.
        own: bool [n], which of the ids the policy drew; None where all.
        turns: of an answer that may call tools; empty elsewhere.
    """

    prompt: int
    ids: NDArray[np.int64]
    logps: Doubles
    text: str
    truncated: bool
    reward: float = np.nan
    parts: dict[str, float | None] = field(default_factory=dict)
    missing: str = ""
    advantage: float = 0.0
    old: Doubles | None = None
    reference: Doubles | None = None
    values: Doubles | None = None
    returns: Doubles | None = None
    advantages: Doubles | None = None
    own: NDArray[np.bool_] | None = None
    turns: tuple[Turn, ...] = ()

    @property
    def places(self) -> NDArray[np.int64]:
        """int64 [m]: where among the ids those are that the policy drew, and which alone are learned and scored."""
        return np.arange(self.ids.size) if self.own is None else np.flatnonzero(self.own)

    @property
    def size(self) -> int:
        """m, which is its length wherever lengths count."""
        return int(self.logps.size)

    @classmethod
    def of(cls, prompt: int, drawn: Drawn) -> Answer:
        """What was said to a prompt, yet to be judged."""
        return cls(prompt, **vars(drawn))

    def counts(self, policy: PolicyConfig) -> bool:
        """Whether its tokens are among those that a loss is a mean over."""
        return not (self.missing or (policy.mask_truncated and self.truncated))


def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    running: int,
) -> list[Drawn]:
    """What the model says to each request, in their order."""
    found: list[Drawn] = []
    if not requests:  # more ranks than prompts
        return found
    for said in continued(model, tokenizer, requests, running):
        assert said.logprobs is not None, "asked for"
        logps = np.array([one.logprob for one in said.logprobs], dtype=np.float64)
        cut = said.finish_reason == "length"
        found.append(Drawn(np.array(said.token_ids, dtype=np.int64), logps, said.text, cut))
    return found


def requests_of(
    prompts: Sequence[tuple[int, Prompt]], group: int, seed: int, draw: int, *, max_tokens: int, temperature: float
) -> list[Request]:
    """What is asked of the engine: `group` answers to each prompt, each by numbers of its own.

    Args:
        prompts: with their numbers.
        group: answers to each.
        seed: of the run.
        draw: number of this draw in the run.
        max_tokens: of an answer.
        temperature: 0 takes the likeliest token always.
    """
    seeds = drawn(seed, draw, np.arange(len(prompts) * group))
    return [
        Request(
            prompt.ids,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=int(seeds[place * group + sample]),
            logprobs=0,
            logprobs_of="sampled",
        )
        for place, (_, prompt) in enumerate(prompts)
        for sample in range(group)
    ]


def figures_of(answers: Sequence[Answer], group: int) -> dict[str, float]:
    """Of all answers that were drawn, those of groups that were not kept among them."""
    rewards = torch.tensor([one.reward for one in answers], dtype=torch.float64).view(-1, group)
    known = rewards[~rewards.isnan()]
    spread = deviations(rewards)
    tokens = sum(one.size for one in answers)
    found: dict[str, Any] = {
        "reward": float(known.mean()),
        "reward_std": float(spread.mean()),
        "zero_std": float((spread == 0).double().mean()),
        "missing": float(rewards.isnan().double().mean()),
        "truncated": sum(one.truncated for one in answers) / len(answers),
        "answer_tokens": tokens / len(answers),
        "generated_tokens": tokens,
        # The mean of -log p over what was drawn from p is an unbiased estimate of p's entropy.
        "entropy": -math.fsum(value for one in answers for value in one.logps.tolist()) / tokens,
    }
    calls = [turn for one in answers for turn in one.turns if turn.role == "tool"]
    if any(one.turns for one in answers):
        found["tool_calls"] = len(calls) / len(answers)
        found["tool_tokens"] = sum(one.ids.size - one.size for one in answers) / len(answers)
        found["tool_failed"] = sum(turn.failed for turn in calls) / max(1, len(calls))
    for name in answers[0].parts:
        values = [value for one in answers if (value := one.parts[name]) is not None]
        if values:
            found[f"reward/{name}"] = math.fsum(values) / len(values)
    return found


def table_of(answers: Sequence[Answer], prompts: Sequence[Prompt], group: int, step: int) -> pa.Table:
    """One row for each answer, in their order; `step` is the first (from 1) that learns from them.

    Lists of figures are as long as `ids`, with nothing at what a tool gave.
    """
    asked = [prompts[answer.prompt] for answer in answers]
    names = list(answers[0].parts) if answers else []
    floats, ints = pa.list_(pa.float64()), pa.list_(pa.int32())
    columns: dict[str, pa.Array] = {
        "step": pa.array([step] * len(answers), pa.int64()),
        "prompt_id": pa.array([prompt.id for prompt in asked], pa.string()),
        "prompt_number": pa.array([answer.prompt for answer in answers], pa.int64()),
        "sample": pa.array([place % group for place in range(len(answers))], pa.int32()),
        "prompt": pa.array([prompt.text for prompt in asked], pa.string()),
        "answer": pa.array([prompt.answer for prompt in asked], pa.string()),
        "completion": pa.array([answer.text for answer in answers], pa.string()),
        "truncated": pa.array([answer.truncated for answer in answers], pa.bool_()),
        "reward": pa.array([_known(answer.reward) for answer in answers], pa.float64()),
        "advantage": pa.array([answer.advantage for answer in answers], pa.float64()),
        "missing": pa.array([answer.missing for answer in answers], pa.string()),
        "prompt_ids": pa.array([list(prompt.ids) for prompt in asked], ints),
        "ids": pa.array([answer.ids for answer in answers], ints),
        "logprobs": pa.array([_spread(one, one.logps) for one in answers], floats),
        "old_logprobs": pa.array([_spread(one, one.old) for one in answers], floats),
        "reference_logprobs": pa.array([_spread(one, one.reference) for one in answers], floats),
        "values": pa.array([_spread(one, one.values) for one in answers], floats),
        "returns": pa.array([_spread(one, one.returns) for one in answers], floats),
        "advantages": pa.array([_spread(one, one.advantages) for one in answers], floats),
        "own": pa.array([answer.own for answer in answers], pa.list_(pa.bool_())),
        "turns": pa.array([[vars(turn) for turn in answer.turns] or None for answer in answers], TURNS),
    }
    parts = {f"reward/{name}": pa.array([one.parts[name] for one in answers], pa.float64()) for name in names}
    return pa.table({**columns, **parts})


def answers_of(table: pa.Table) -> list[Answer]:
    """The inverse of `table_of`."""
    found = []
    for row in table.to_pylist():
        parts = {key.removeprefix("reward/"): value for key, value in row.items() if key.startswith("reward/")}
        found.append(
            Answer(
                prompt=row["prompt_number"],
                ids=np.array(row["ids"], dtype=np.int64),
                logps=_figures(row["logprobs"]),
                text=row["completion"],
                truncated=row["truncated"],
                reward=np.nan if row["reward"] is None else row["reward"],
                parts=parts,
                missing=row["missing"],
                advantage=row["advantage"],
                old=_array(row["old_logprobs"]),
                reference=_array(row["reference_logprobs"]),
                values=_array(row["values"]),
                returns=_array(row["returns"]),
                advantages=_array(row["advantages"]),
                own=None if row["own"] is None else np.array(row["own"], dtype=np.bool_),
                turns=tuple(Turn(**turn) for turn in row["turns"] or ()),
            )
        )
    return found


def kept(path: Path) -> tuple[list[Answer], dict[str, float]]:
    """What `write` was given of a rollout."""
    table = pq.read_table(path)
    return answers_of(table), json.loads((table.schema.metadata or {}).get(FIGURES, b"{}"))


def write(table: pa.Table, path: Path, figures: Mapping[str, float]) -> None:
    """A file that is whole or absent, the rollout's figures with it."""
    table = table.replace_schema_metadata({FIGURES: json.dumps(dict(figures))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    path.parent.mkdir(parents=True, exist_ok=True)
    publish_bytes(path, sink.getvalue().to_pybytes())


def gathered(paths: Iterable[Path], out: Path) -> int:
    """All rollouts behind one another in one file, a row group each; how many rows."""
    writer: pq.ParquetWriter | None = None
    rows = 0
    try:
        for path in paths:
            table = pq.read_table(path).replace_schema_metadata(None)  # what was measured is in the metrics
            if writer is None:
                out.parent.mkdir(parents=True, exist_ok=True)
                writer = pq.ParquetWriter(out, table.schema, compression="zstd")
            writer.write_table(table, row_group_size=max(1, table.num_rows))
            rows += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    return rows


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _spread(answer: Answer, values: Doubles | None) -> Doubles | list[float | None] | None:
    """Figures of what was drawn, each beside its id."""
    if values is None or answer.own is None:
        return values
    figures = iter(values.tolist())
    return [next(figures) if own else None for own in answer.own]


def _figures(values: list[float | None]) -> Doubles:
    """The inverse of `_spread`."""
    return np.array([value for value in values if value is not None], dtype=np.float64)


def _array(values: list[float | None] | None) -> Doubles | None:
    return None if values is None else _figures(values)
