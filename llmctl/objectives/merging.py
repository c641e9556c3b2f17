"""The stage `merge`: adapters into their checkpoint, or several checkpoints into one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from llmctl.config.errors import InputError, UsageError
from llmctl.config.merge import MergeConfig
from llmctl.model import adapters, huggingface, merging, nf4
from llmctl.model.transformer import Transformer
from llmctl.objectives import checkpoint
from llmctl.objectives.start import check_same_tokens
from llmctl.pipeline.job import Job, Product
from llmctl.store.artifact import Artifact

NEEDS_BASE = ("task", "ties", "dare")


def run(job: Job[MergeConfig]) -> Product:
    """Merge tensor by tensor and write a checkpoint in the dtype of the first one.

    Raises:
        InputError: the sources do not fit one another.
        UsageError: the method needs other sources.
    """
    given = {name: source for name, source in job.group("sources").items() if isinstance(source, Artifact)}
    models = {name: source for name, source in given.items() if source.kind == "checkpoint"}
    learned = [source for source in given.values() if source.kind == "adapter"]
    if learned:
        if len(models) != 1 or "base" in job.inputs:
            raise UsageError("adapters are merged into one checkpoint", hint="llmctl merge CHECKPOINT ADAPTER")
        first = next(iter(models.values()))
        model, weights = _with_adapters(first, learned)
    else:
        first = _checked(job, models)
        model, weights = _merged(job, models)
    facts = checkpoint.write(job, weights, model.config, model.vocab_size, first.data)
    totals: dict[str, int | float | str] = {"parameters": facts["parameters"], "merged": len(given)}
    return Product(checkpoint.SCHEMA, semantic={**facts, **_facts(first, [*models.values(), *learned])}, totals=totals)


def _facts(first: Artifact, given: list[Artifact]) -> dict[str, Any]:
    """What the merged checkpoint has of its sources; what was held out of all of them is unseen."""
    every = [source.manifest.semantic for source in given]
    facts = {name: first.manifest.semantic[name] for name in ("vocab_size", "tokenizer", "seq_len")}
    if any(known.get("chat") for known in every):
        facts["chat"] = True
    return {**facts, **checkpoint.unseen(*given)}


def _with_adapters(base: Artifact, learned: list[Artifact]) -> tuple[Transformer, dict[str, Tensor]]:
    """The checkpoint's weights with one adapter after the other merged in.

    An adapter that was trained on a base in 4 bits is merged into what those stand for, as what it learned makes up
    for their errors too.
    """
    model = huggingface.load(base.data)
    weights, dtypes = dict(model.state_dict()), {name: value.dtype for name, value in model.state_dict().items()}
    if any(source.manifest.semantic.get("base_kept") == "nf4" for source in learned):
        for name, layer in model.named_modules():
            if nf4.quantized(name, layer):
                weights[f"{name}.weight"] = nf4.rounded(weights[f"{name}.weight"])
    for source in learned:
        trained_on = source.manifest.semantic.get("base")
        if trained_on is not None and trained_on != base.digest and len(learned) == 1:
            raise InputError(
                f"{source.ref} was trained on another checkpoint than {base.ref}",
                hint="see llmctl lineage of the adapter, and merge it into what it was trained on",
            )
        for name, factors in adapters.read(source.data, model.config, model.vocab_size).items():
            weights[f"{name}.weight"] = factors.merged(weights[f"{name}.weight"])
    return model, {name: value.to(dtypes[name]) for name, value in weights.items()}


def _checked(job: Job[MergeConfig], models: dict[str, Artifact]) -> Artifact:
    """The first of the models, after checking that they can be merged."""
    method, count = job.config.method, len(models)
    if (method == "slerp" and count != 2) or (method not in NEEDS_BASE and count < 2) or not count:
        raise UsageError(f"{method} does not merge {count} models", hint="slerp takes two, linear two or more")
    if method in NEEDS_BASE and "base" not in job.inputs:
        raise UsageError(f"{method} adds what was learned to a base", hint="give --base REF")
    unknown = job.config.weights.keys() - models.keys()
    if unknown:
        raise UsageError(f"weights name no source: {', '.join(sorted(unknown))}", hint=f"known: {', '.join(models)}")
    first, *rest = models.values()
    for other in (*rest, *([job.artifact("base")] if "base" in job.inputs else [])):
        check_same_tokens(first, other)
    return first


def _merged(job: Job[MergeConfig], models: dict[str, Artifact]) -> tuple[Transformer, dict[str, Tensor]]:
    """The first model, for its shape, and the merged weights."""
    config = job.config
    opened = {name: huggingface.load(source.data) for name, source in models.items()}
    first = next(iter(opened.values()))
    base = huggingface.load(job.artifact("base").data) if config.method in NEEDS_BASE else None
    for name, model in {**opened, **({"base": base} if base is not None else {})}.items():
        if model.config != first.config or model.vocab_size != first.vocab_size:
            raise InputError(f"{name} has another shape than {next(iter(opened))}", hint="merge models of one shape")
    shares = [config.weights.get(name, 1.0) for name in opened]
    states = {name: model.state_dict() for name, model in opened.items()}
    below = None if base is None else base.state_dict()
    made = {}
    for at, (name, like) in enumerate(first.state_dict().items(), start=1):
        tensors = [state[name].float() for state in states.values()]
        merged = _one(config, name, tensors, list(opened), shares, None if below is None else below[name].float())
        made[name] = merged.to(like.dtype)
        job.progress.update(at, len(states[next(iter(states))]), "tensors")
    return first, made


def _one(
    config: MergeConfig,
    name: str,
    tensors: list[Tensor],
    sources: list[str],
    shares: list[float],
    base: Tensor | None,
) -> Tensor:
    """One tensor of the merged model."""
    if config.method == "linear":
        return merging.linear(tensors, shares)
    if config.method == "slerp":
        one, other = tensors
        return merging.slerp(one, other, shares[1] / sum(shares))
    assert base is not None, "checked before"
    changes = [tensor - base for tensor in tensors]
    if config.method == "ties":
        return base + merging.ties(changes, shares, config.density, config.ties)
    if config.method == "dare":
        changes = [
            merging.dropped(change, config.density, config.dare, merging.generator_of(config.seed, source, name))
            for source, change in zip(sources, changes, strict=True)
        ]
    return base + merging.task(changes, shares)
