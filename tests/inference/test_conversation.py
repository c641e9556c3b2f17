"""A checkpoint opened by name of device and precision, and asked through the chat template."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.config.devices import Precision
from llmctl.inference.conversation import answer, converse, open_engine
from llmctl.inference.engine import Engine
from llmctl.inference.options import Options
from llmctl.inference.request import Constraint, Request
from llmctl.tokens.chat import render_prompt


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_decides_the_dtype(checkpoint: Path, precision: Precision, dtype: torch.dtype) -> None:
    with open_engine(checkpoint, device="cpu", precision=precision, max_running=3) as engine:
        assert engine.model.dtype == engine._scheduler.cache.data.dtype == dtype
        assert engine.model.device == torch.device("cpu")
        assert engine._scheduler.rows == 3


def test_a_draft_is_opened_beside_the_model(checkpoint: Path) -> None:
    chat = [{"role": "user", "content": "what is a list?"}]
    options = Options(draft_tokens=3)
    with open_engine(checkpoint, device="cpu", precision="fp32") as engine:
        alone = answer(engine, chat, max_tokens=8, temperature=0.0)
    with open_engine(checkpoint, device="cpu", precision="fp32", options=options, draft=checkpoint) as engine:
        assert answer(engine, chat, max_tokens=8, temperature=0.0) == alone
        assert engine.counts.accepted == engine.counts.drafted > 0


def test_an_answer_is_what_the_rendered_chat_generates(checkpoint: Path) -> None:
    chat = [
        {"role": "user", "content": "what is a list?"},
        {"role": "assistant", "content": "a row"},
        {"role": "user", "content": "why?"},
    ]
    with open_engine(checkpoint, device="cpu", precision="fp32") as engine:
        completion = answer(engine, chat, max_tokens=8, temperature=0.0)
        prompt = render_prompt(engine.tokenizer, chat)
        assert [completion] == engine.generate([Request(prompt, max_tokens=8, temperature=0.0)])
        assert 1 <= len(completion.token_ids) <= 8


def test_every_answer_of_a_conversation_sees_what_was_said_before(checkpoint: Path) -> None:
    heard: list[str] = []

    def typed() -> Iterator[str]:
        for question in ("what is a list?", "why?"):
            heard.append(question)
            yield question

    with open_engine(checkpoint, device="cpu", precision="fp32") as engine:
        turns = converse(engine, typed(), max_tokens=8, temperature=0.0)
        first = next(turns)
        assert heard == ["what is a list?"]  # the next one is not waited for before the first is answered
        chat = [{"role": "user", "content": "what is a list?"}]
        assert first == ("what is a list?", answer(engine, chat, max_tokens=8, temperature=0.0))
        chat += [{"role": "assistant", "content": first[1].text}, {"role": "user", "content": "why?"}]
        assert list(turns) == [("why?", answer(engine, chat, max_tokens=8, temperature=0.0))]


def test_an_answer_told_at_its_end_is_the_one_told_as_it_comes(engine: Engine) -> None:
    def asked(**changes: Any) -> Request:
        return Request([1, 40, 41], **{"max_tokens": 20, "seed": 5, "stop_ids": (), "logprobs": 0, **changes})

    (plain,) = engine.generate([asked()])
    requests = [
        asked(prompt_logprobs=0),
        asked(stop=(plain.text[6:8],), logprobs=2),
        asked(stop_ids=(plain.token_ids[9],), min_tokens=3, logprobs=None),
        asked(temperature=0.0, repetition_penalty=1.3),
        asked(constraint=Constraint("regex", "[a-z]{1,9}")),
    ]
    whole = engine.generate(requests)
    for request, told in zip(requests, whole, strict=True):
        events = list(engine.submit(request))
        assert tuple(token for event in events for token in event.token_ids) == told.token_ids
        assert "".join(event.text for event in events) == told.text
        assert len(events) == len(told.token_ids)
        assert engine.submit(request).result() == told
    assert [told.finish_reason for told in whole] == ["length", "stop", "stop", "length", "stop"]
