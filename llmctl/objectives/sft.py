"""The stage `sft`: a checkpoint fine-tuned on chats, with the loss on the assistant's tokens only."""

from __future__ import annotations

from llmctl.config.train import SftConfig
from llmctl.objectives import adapter, checkpoint
from llmctl.objectives.chats import PackedChats, Sides, read_sides
from llmctl.objectives.losses import NextToken
from llmctl.objectives.noise import NoisyChats
from llmctl.objectives.start import fill_id, longest, open_model, open_tokenizer
from llmctl.objectives.targets import inspected
from llmctl.pipeline.job import Job, Product
from llmctl.train import launch
from llmctl.train.heldout import HeldOutRows


def run(job: Job[SftConfig]) -> Product:
    """Train in this process, or with ranks where the configuration or a launcher asks for them."""
    return launch.start(job, "llmctl.objectives.sft:train")


def train(job: Job[SftConfig]) -> Product:
    """What every rank runs.

    Raises:
        InputError: a chat cannot be learned from, or checkpoint and tokenizer do not belong together.
        UsageError: rows longer than the model's context were asked for.
    """
    given, config = job.artifact(), job.config
    tokenizer = open_tokenizer(given)
    model = open_model(given, tokenizer, config.base)
    start = adapter.begin(model, config.lora, config.seed)
    length = longest(given, config.max_tokens)
    filling = fill_id(given, tokenizer)
    chats = read_sides(job.inputs["chats"], tokenizer, length, config.heldout_fraction, config.overlong, config.learn)
    _tell(job, chats, length)
    for number, chat in enumerate(chats.kept[: config.inspect], start=1):
        for line in inspected(f"chat {number}", chat.ids, chat.labels, tokenizer):
            job.progress.note(line)
    rows, held = (PackedChats(side, length, filling) for side in (chats.kept, chats.held))
    fitted, totals = checkpoint.fit_tuned(
        job,
        model,
        NextToken(NoisyChats(rows, config.neftune_alpha, model.config.width) if config.neftune_alpha else rows),
        HeldOutRows(held, tokenizer.byte_lengths) if held.count else None,
        unit="chats",
        kept=len(chats.kept),
        held=len(chats.held),
        overlong=len(chats.overlong),
    )
    facts = checkpoint.tuned_facts(given, length, chats.heldout_fraction)
    return checkpoint.publish_tuned(job, fitted, model, start, semantic=facts, totals=totals)


def _tell(job: Job[SftConfig], chats: Sides, length: int) -> None:
    """Say what is not trained on."""
    overlong = len(chats.overlong)
    if overlong:
        given = len(chats.kept) + len(chats.held) + overlong
        job.progress.note(f"dropped {overlong} chats longer than {length} tokens of {given}")
    if not chats.held:
        job.progress.note("no chat is held out, so there is no held-out loss")
