"""The stock OpenAI client against a real server."""

import json
from typing import Any

import openai
import pytest

from llmctl.tokens.chat import render_prompt
from tests.serve.conftest import CONTEXT, MODEL, Running

MESSAGES: list[Any] = [{"role": "system", "content": "list"}, {"role": "user", "content": "the file is sorted"}]


def test_models_are_listed(server: Running) -> None:
    (model,) = server.client().models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "llmctl")
    assert model.model_extra == {"max_model_len": CONTEXT}


def test_a_completion_is_what_the_engine_generates(server: Running) -> None:
    answer = server.client().completions.create(model=MODEL, prompt="the list is", max_tokens=12, temperature=0)
    tokenizer = server.engine.tokenizer
    prompt = [tokenizer.bos_id, *tokenizer.encode("the list is")]
    by_ids = server.client().completions.create(model=MODEL, prompt=prompt, max_tokens=12, temperature=0)
    assert answer.choices[0].text == by_ids.choices[0].text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == len(prompt) + 12
    assert answer.choices[0].finish_reason == "length"


def test_a_completion_without_max_tokens_has_sixteen(server: Running) -> None:
    answer = server.client().completions.create(model=MODEL, prompt="the", extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_several_prompts_and_choices_are_numbered_prompt_by_prompt(server: Running) -> None:
    client = server.client()
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 6, "seed": 7, "temperature": 1.0}
    both = client.completions.create(prompt=["the list", "a file"], n=2, **asked)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    second = client.completions.create(prompt="a file", n=2, **asked)
    assert [choice.text for choice in both.choices[2:]] == [choice.text for choice in second.choices]


def test_echo_returns_the_prompt_in_front(server: Running) -> None:
    client = server.client()
    plain = client.completions.create(model=MODEL, prompt="the list", max_tokens=5, temperature=0)
    echoed = client.completions.create(model=MODEL, prompt="the list", max_tokens=5, temperature=0, echo=True)
    assert echoed.choices[0].text == "the list" + plain.choices[0].text
    only = client.completions.create(model=MODEL, prompt="the list", max_tokens=0, echo=True)
    assert (only.choices[0].text, only.choices[0].finish_reason) == ("the list", "length")


def test_a_chat_goes_through_the_template_and_fills_the_context(server: Running) -> None:
    answer = server.client().chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0)
    prompt = render_prompt(server.engine.tokenizer, MESSAGES)
    raw = server.client().completions.create(
        model=MODEL, prompt=prompt, temperature=0, max_tokens=CONTEXT - len(prompt)
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == raw.choices[0].text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)


def test_an_answer_can_be_sent_back_as_the_client_has_it(server: Running) -> None:
    client = server.client()
    first = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=4)
    history = [*MESSAGES, first.choices[0].message, {"role": "user", "content": [{"type": "text", "text": "a"}]}]
    client.chat.completions.create(model=MODEL, messages=history, max_tokens=4)


@pytest.mark.parametrize("stop", [None, ["a"], ["e", "the"]])
@pytest.mark.parametrize("n", [1, 3])
def test_a_streamed_chat_adds_up_to_the_whole_one(server: Running, n: int, stop: list[str] | None) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "temperature": 0.9, "seed": 3, "max_tokens": 40}
    whole = server.client().chat.completions.create(n=n, stop=stop, **asked)
    texts = [""] * n
    reasons: list[str | None] = [None] * n
    usage = None
    stream = server.client().chat.completions.create(
        n=n, stop=stop, stream=True, stream_options={"include_usage": True}, **asked
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_a_streamed_completion_adds_up_to_the_whole_one(server: Running) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": ["the", "a"], "temperature": 0, "max_tokens": 30, "echo": True}
    whole = server.client().completions.create(**asked)
    texts = ["", ""]
    for chunk in server.client().completions.create(stream=True, **asked):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


def test_an_echo_is_scored(server: Running) -> None:
    create = server.client().completions.create
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0, "echo": True, "logprobs": 1}
    ids = server.engine.tokenizer.encode("the list")
    whole, alone = (create(prompt="the list", max_tokens=count, **asked).choices[0] for count in (4, 0))
    assert whole.logprobs is not None
    assert alone.logprobs is not None
    assert whole.logprobs.token_logprobs is not None
    assert len(whole.logprobs.token_logprobs) == len(ids) + 4
    assert whole.logprobs.token_logprobs[: len(ids)] == pytest.approx(alone.logprobs.token_logprobs, abs=1e-5)
    assert alone.text == "the list" == "".join(alone.logprobs.tokens or ())
    assert alone.finish_reason == "length"
    # Of ids given by the client the first has nothing in front of it, and so no log-probability.
    given = create(prompt=[server.engine.tokenizer.bos_id, *ids], max_tokens=0, **asked).choices[0].logprobs
    assert given is not None
    assert given.token_logprobs is not None
    assert given.token_logprobs[0] is None
    assert given.token_logprobs[1:] == pytest.approx(alone.logprobs.token_logprobs, abs=1e-5)
    (score,) = server.engine.score([([server.engine.tokenizer.bos_id], ids)])
    assert sum(given.token_logprobs[1:]) == pytest.approx(score.logprob, abs=1e-3)
    texts: list[str] = []
    scores: list[float] = []
    for chunk in create(prompt="the list", max_tokens=4, stream=True, **asked):
        texts.append(chunk.choices[0].text)
        assert chunk.choices[0].logprobs is not None
        scores += chunk.choices[0].logprobs.token_logprobs or ()
    assert "".join(texts) == whole.text
    assert scores == pytest.approx(whole.logprobs.token_logprobs, abs=1e-5)


def test_a_bias_and_an_allowed_list_decide_what_comes(server: Running) -> None:
    token = server.engine.tokenizer.encode("the list")[-1]
    text = server.engine.tokenizer.decode([token] * 5)
    for more in ({"logit_bias": {str(token): 100}}, {"extra_body": {"allowed_token_ids": [token]}}):
        asked: dict[str, Any] = {"model": MODEL, "prompt": "a", "max_tokens": 5, **more}
        assert server.client().completions.create(**asked).choices[0].text == text


def test_an_answer_in_the_form_that_was_asked_for(server: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "maximum": 99, "minimum": 0}},
        "required": ["ok", "n"],
        "additionalProperties": False,
    }
    asked: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 60, "n": 4, "seed": 1}
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    chat = server.client().chat.completions.create(response_format=form, **asked)
    for choice in chat.choices:
        assert choice.finish_reason == "stop"
        value = json.loads(choice.message.content or "")
        assert isinstance(value["ok"], bool)
        assert 0 <= value["n"] <= 99
    free = server.client().chat.completions.create(response_format={"type": "json_object"}, **asked)
    for choice in free.choices:
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content or ""), dict)
    more = {"structured_outputs": {"choice": ["yes", "no"]}}
    picked = server.client().completions.create(model=MODEL, prompt="is it?", n=8, extra_body=more)
    assert {choice.text for choice in picked.choices} <= {"yes", "no"}


def test_a_seed_repeats_an_answer_and_another_changes_it(server: Running) -> None:
    def ask(seed: int | None) -> str | None:
        answer = server.client().chat.completions.create(model=MODEL, messages=MESSAGES, seed=seed, max_tokens=24)
        return answer.choices[0].message.content

    assert ask(1) == ask(1)
    assert ask(-5) == ask(-5)
    assert len({ask(1), ask(2), ask(None), ask(None)}) == 4


def test_choices_of_one_request_differ_and_the_first_is_that_of_n_one(server: Running) -> None:
    def ask(n: int) -> list[str]:
        answer = server.client().completions.create(model=MODEL, prompt="the", n=n, seed=5, max_tokens=24)
        return [choice.text for choice in answer.choices]

    three = ask(3)
    assert len(set(three)) == 3
    assert ask(1) == three[:1]


def test_a_stop_string_ends_the_text_and_is_not_in_it(server: Running) -> None:
    whole = server.client().completions.create(model=MODEL, prompt="the", temperature=0, max_tokens=60)
    text = whole.choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    cut = server.client().completions.create(model=MODEL, prompt="the", temperature=0, max_tokens=60, stop=[stop])
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_chat_logprobs_hold_every_token_and_its_alternatives(server: Running) -> None:
    answer = server.client().chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    text = b"".join(bytes(token.bytes or []) for token in logprobs.content)
    assert text.decode(errors="replace") == answer.choices[0].message.content
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        # Greedy: what was chosen is the likeliest.
        assert token.top_logprobs[0].token == token.token
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
        assert token.logprob < 0


def test_completion_logprobs_line_up_with_the_text(server: Running) -> None:
    answer = server.client().completions.create(model=MODEL, prompt="the", temperature=0, max_tokens=8, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert logprobs.token_logprobs is not None
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        if not token.startswith("bytes:"):
            assert answer.choices[0].text[offset:].startswith(token)
    assert len(logprobs.token_logprobs) == 8


def test_an_unknown_model_is_not_found(server: Running) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        server.client().chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
