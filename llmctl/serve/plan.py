"""From a valid body to what the engine is asked: prompts in tokens, budgets within the context, sampling."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from llmctl.config.errors import UsageError
from llmctl.inference.request import Constraint, Request
from llmctl.serve.errors import ApiError, bad_request
from llmctl.serve.generation import Service
from llmctl.serve.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    Message,
    TokenizeRequest,
)
from llmctl.serve.toolmodels import Tool
from llmctl.serve.toolplan import ToolPlan, plan_tools
from llmctl.tokens.chat import render_prompt

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's, for completions that name no max_tokens
TOO_LONG = "context_length_exceeded"
UINT64 = 2**64


@dataclass(frozen=True)
class Plan:
    """What one HTTP request asks of the engine.

    Attributes:
        prompts: token ids, one list per prompt.
        requests: prompt-major, `choices` for each prompt; empty where no token is to be generated.
        choices: how many per prompt.
        tools: what the answer may call.
        with_ids: whether the answer's ids are wanted, the one that ends it among them.
    """

    prompts: list[list[int]]
    requests: list[Request]
    choices: int
    tools: ToolPlan | None = None
    with_ids: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, once each."""
        return sum(map(len, self.prompts))


def plan_completion(service: Service, body: CompletionRequest) -> Plan:
    """The plan of `POST /v1/completions`; `ApiError` where a bound is passed."""
    _check(service, body, prompts=len(body.prompt))
    if body.logprobs is not None:
        _check_alternatives(service, body.logprobs, "logprobs")
    prompts = [_prompt_ids(service, prompt) for prompt in body.prompt]
    requests = []
    for prompt in prompts:
        budget = _budget(service, len(prompt), body.max_tokens, "max_tokens", "prompt", DEFAULT_COMPLETION_TOKENS)
        scores = body.logprobs if body.echo else None
        if budget or scores is not None:
            requests += _requests(service, body, prompt, budget, body.logprobs, scores)
    return Plan(prompts, requests, body.choices_per_prompt, with_ids=bool(body.return_token_ids))


def plan_chat(service: Service, body: ChatRequest) -> Plan:
    """The plan of `POST /v1/chat/completions`; `ApiError` where a bound is passed."""
    _check(service, body, prompts=1)
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs", "invalid_value")
    _check_alternatives(service, body.top_logprobs or 0, "top_logprobs")
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    tools = plan_tools(service, body)
    prompt = _chat_ids(service, body.messages, tools.tools if tools else ())
    budget = _budget(service, len(prompt), asked, name, "messages", None)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    requests = _requests(service, body, prompt, budget, logprobs, tools=tools)
    return Plan([prompt], requests, body.choices_per_prompt, tools)


def plan_tokens(service: Service, body: TokenizeRequest) -> list[int]:
    """The ids of `POST /tokenize`; `ApiError` where the text is longer than any that the model could read."""
    _check_model(service, body.model)
    tokenizer = service.engine.tokenizer
    if body.messages is None:
        prompt = body.prompt or ""
        _check_bytes(service, len(prompt.encode()), "prompt")
        return [*(tokenizer.text_start if body.add_special_tokens else ()), *tokenizer.encode(prompt)]
    return _chat_ids(service, body.messages, body.tools or (), opened=body.add_generation_prompt)


def text_of_tokens(service: Service, body: DetokenizeRequest) -> str:
    """The text of `POST /detokenize`; special tokens, which have none, are left out."""
    _check_model(service, body.model)
    return service.engine.tokenizer.decode(_known_ids(service, body.tokens, "tokens"))


def _check_model(service: Service, name: str | None) -> None:
    if name not in (None, service.model_name):
        raise ApiError(
            404,
            f"the model {name[:80]!r} does not exist; this server has {service.model_name!r}",
            param="model",
            code="model_not_found",
        )


def _check(service: Service, body: GenerationRequest, *, prompts: int) -> None:
    """Refuse what the bounds alone rule out, before any prompt is encoded."""
    _check_model(service, body.model)
    if body.choices_per_prompt > service.config.max_n:
        raise bad_request(
            f"n: {body.choices_per_prompt} is more than the {service.config.max_n} this server allows", "n"
        )
    if prompts * body.choices_per_prompt > service.capacity:
        asked = f"prompts x n is {prompts * body.choices_per_prompt}"
        raise bad_request(f"{asked}, this server takes at most {service.capacity} at one time", "n")
    if body.stream_options is not None and not body.wants_stream:
        raise bad_request("stream_options needs stream to be true", "stream_options", "invalid_value")


def _check_alternatives(service: Service, count: int, param: str) -> None:
    if count > service.config.max_logprobs:
        raise bad_request(f"{param}: {count} is more than the {service.config.max_logprobs} this server allows", param)


def _check_bytes(service: Service, count: int, param: str) -> None:
    """Refuse, before it is encoded, a text that no tokenization can fit into the context."""
    longest = int(service.engine.tokenizer.byte_lengths.max())
    if count > service.engine.context * longest:
        raise bad_request(
            f"{param}: {count} bytes cannot fit the model's context of {service.engine.context} tokens", param, TOO_LONG
        )


def _chat_ids(
    service: Service, messages: Sequence[Message], tools: Sequence[Tool], *, opened: bool = True
) -> list[int]:
    """Ids of a chat, with the tools that the model is told of."""
    _check_bytes(service, sum(message.size for message in messages), "messages")
    told = [tool.for_template() for tool in tools]
    if told:
        _check_bytes(service, len(json.dumps(told)), "tools")
    turns = [message.as_turn() for message in messages]
    return render_prompt(service.engine.tokenizer, turns, add_generation_prompt=opened, tools=told)


def _prompt_ids(service: Service, prompt: str | Sequence[int]) -> list[int]:
    tokenizer = service.engine.tokenizer
    if isinstance(prompt, str):
        _check_bytes(service, len(prompt.encode()), "prompt")
        return [*tokenizer.text_start, *tokenizer.encode(prompt)] or [tokenizer.bos_id]
    return _known_ids(service, prompt, "prompt")


def _known_ids(service: Service, tokens: Sequence[int], param: str) -> list[int]:
    last = service.engine.tokenizer.vocab_size - 1
    for token in tokens:
        if not 0 <= token <= last:
            raise bad_request(f"{param}: token id {token} is outside 0..{last}", param, "invalid_value")
    return list(tokens)


def _budget(
    service: Service, prompt: int, asked: int | None, param: str, prompt_param: str, default: int | None
) -> int:
    """How many tokens to generate; what was asked for must fit, a default shrinks to what does."""
    context, most = service.engine.context, service.config.max_tokens
    if asked is not None and most is not None and asked > most:
        raise bad_request(f"{param}: {asked} is more than the {most} this server allows", param)
    if prompt + (0 if asked == 0 else 1) > context:
        raise bad_request(
            f"{prompt_param}: {prompt} tokens leave no room in the model's context of {context}", prompt_param, TOO_LONG
        )
    if asked is not None and prompt + asked > context:
        raise bad_request(
            f"{param}: {asked} after a prompt of {prompt} makes {prompt + asked} tokens, the context is {context}",
            param,
            TOO_LONG,
        )
    room = context - prompt
    return asked if asked is not None else min(limit for limit in (room, most, default) if limit is not None)


def _requests(
    service: Service,
    body: GenerationRequest,
    prompt: list[int],
    budget: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    tools: ToolPlan | None = None,
) -> list[Request]:
    """One engine request per choice. Choice i is sampled with seed + i, so the first is what n = 1 gives."""
    ids = {
        "logit_bias": body.logit_bias,
        "allowed_token_ids": body.allowed_token_ids,
        "banned_token_ids": body.banned_token_ids,
        "stop_token_ids": body.stop_token_ids,
    }
    for param, named in ids.items():
        _known_ids(service, list(named or ()), param)
    if body.min_tokens is not None and body.min_tokens > budget:
        raise bad_request(f"min_tokens: {body.min_tokens} is more than max_tokens, which is {budget}", "min_tokens")
    constraint, param = _constraint(body)
    if tools is not None and tools.form is not None:
        constraint, param = tools.form, "tools"
    if constraint is not None:
        try:
            service.engine.check_constraint(constraint)  # compiled here, on a thread of the pool
        except UsageError as error:
            raise bad_request(f"{param}: {error.one_line}", param, "invalid_value") from None
    stop_ids = () if body.ignore_eos else service.engine.tokenizer.stop_ids
    seed = secrets.randbits(63) if body.seed is None else body.seed
    return [
        Request(
            prompt_ids=prompt,
            max_tokens=budget,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=max(body.top_k or 0, 0),
            top_p=1.0 if body.top_p is None else body.top_p,
            min_p=body.min_p or 0.0,
            typical_p=1.0 if body.typical_p is None else body.typical_p,
            repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            logit_bias=body.logit_bias or {},
            allowed_ids=body.allowed_token_ids,
            banned_ids=body.banned_token_ids or (),
            min_tokens=body.min_tokens or 0,
            seed=(seed + choice) % UINT64,
            stop=list(body.stop or ()),
            stop_ids=(*stop_ids, *(body.stop_token_ids or ())),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            constraint=constraint,
            spelled_ids=tools.spelled_ids if tools else (),
            logprobs_of=body.logprobs_mode or "raw",
        )
        for choice in range(body.choices_per_prompt)
    ]


def _constraint(body: GenerationRequest) -> tuple[Constraint | None, str]:
    """The form of the answer, and the field that asks for it."""
    form = body.structured_outputs
    given = body.response_format if isinstance(body, ChatRequest) else None
    if given is not None and given.type != "text":
        if form is not None:
            raise bad_request("structured_outputs and response_format exclude each other", "structured_outputs")
        return Constraint("json_schema", json.dumps(given.schema_of_answer)), "response_format"
    if form is None:
        return None, ""
    if form.regex is not None:
        return Constraint("regex", form.regex), "structured_outputs.regex"
    if form.choice is not None:
        return Constraint("choice", json.dumps(form.choice)), "structured_outputs.choice"
    if form.grammar is not None:
        return Constraint("grammar", form.grammar), "structured_outputs.grammar"
    text = form.json_ if isinstance(form.json_, str) else json.dumps(form.json_)
    return Constraint("json_schema", text), "structured_outputs.json"
