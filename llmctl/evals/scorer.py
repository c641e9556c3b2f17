"""A reward model that reads what was asked with an answer, and says what the answer is worth."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmctl.config.devices import Device
from llmctl.config.errors import InputError
from llmctl.evals.requests import Prompt
from llmctl.model import scoring
from llmctl.model.device import choose_device
from llmctl.store.artifact import Artifact
from llmctl.tokens.chat import render_answer
from llmctl.tokens.tokenizer import Tokenizer

AT_ONCE = 256  # texts, whose ids are held at one time


class Scorer:
    """A checkpoint of `llmctl reward`, with its own tokenizer and template.

    It has learned on chats: what is no chat is put to it as what the user says. The score is read where the answer's
    turn ends.

    Args:
        given: the checkpoint.
        device: where it runs.

    Raises:
        InputError: it gives no scores, or scores of something else than whole answers.
    """

    def __init__(self, given: Artifact, device: Device) -> None:
        scoring.require_whole(given)
        self._model = scoring.load(given.data, dtype=torch.float32).to(choose_device(device)).eval()
        self._tokenizer = Tokenizer.open(given.data)

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """The score of each text as the answer to its prompt.

        Raises:
            InputError: one is longer than the reward model reads.
        """
        found: list[float] = []
        for start in range(0, len(texts), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            rows = [self._ids(prompt, text) for prompt, text in zip(prompts[part], texts[part], strict=True)]
            found += scoring.last_scores(self._model, rows)
        return found

    def _ids(self, prompt: Prompt, text: str) -> list[int]:
        asked = prompt.messages if prompt.chat else [{"role": "user", "content": prompt.text}]
        ids = render_answer(self._tokenizer, asked, text)
        if len(ids) > (context := self._model.config.context):
            raise InputError(
                f"a text with its prompt has {len(ids)} tokens, the reward model reads {context}",
                hint="give a smaller --budget, or fewer --shots",
            )
        return ids
