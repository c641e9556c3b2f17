"""Short greedy answers of a checkpoint, to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmctl.inference.engine import Engine, Request
from llmctl.tokens.chat import render_prompt
from llmctl.train.strategy import choose_device


def sample_answers(
    checkpoint_directory: Path, questions: Sequence[str], *, max_tokens: int = 64, device: str = "auto"
) -> list[tuple[str, str]]:
    """Ask each question through the chat template and answer it greedily.

    Args:
        checkpoint_directory: Hugging Face directory with its tokenizer.
        questions: one user turn each.
        max_tokens: longest answer; shorter where the model's context ends first.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        (question, answer) in the order given.

    Raises:
        InputError: the checkpoint cannot be opened.
        UsageError: a question leaves no room for an answer.
    """
    with Engine.open(checkpoint_directory, device=choose_device(device)) as engine:
        chats = [[{"role": "user", "content": question}] for question in questions]
        prompts = [render_prompt(engine.tokenizer, chat) for chat in chats]
        answers = engine.generate([Request(prompt, max_tokens=max_tokens, temperature=0.0) for prompt in prompts])
    return [(question, answer.text.strip()) for question, answer in zip(questions, answers, strict=True)]
