"""A request of ours in vLLM's words."""

from __future__ import annotations

import json
from typing import Any

from llmctl.config.errors import UsageError
from llmctl.inference.request import Request
from llmctl.tokens.tokenizer import Tokenizer

INT64 = 2**63


def asked_of_vllm(request: Request, model: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """The body of `POST /v1/completions` whose answer is that of `request`, but for its stop strings, which are ours.

    Raises:
        UsageError: vLLM has no such setting.
    """
    lacking = {
        "typical_p": request.typical_p < 1,
        "banned_token_ids": bool(request.banned_ids),
        "logprobs_mode sampled": request.logprobs_of == "sampled",
        "echo with logprobs": request.prompt_logprobs is not None,
    }
    for name, asked in lacking.items():
        if asked:
            raise UsageError(f"{name}: the engine of this server, vLLM, has no such thing", hint="leave it out")
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(request.prompt_ids),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_k": request.top_k or -1,
        "top_p": request.top_p,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "min_tokens": request.min_tokens,
        "stop_token_ids": sorted(request.ends(tokenizer)),
        "ignore_eos": True,  # what ends the answer is named
        "stream": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "cache_salt": request.cache_salt or "none",
    }
    if request.seed is not None:
        body["seed"] = request.seed % INT64
    if request.logit_bias:
        body["logit_bias"] = {str(index): bias for index, bias in request.logit_bias.items()}
    if request.allowed_ids is not None:
        body["allowed_token_ids"] = list(request.allowed_ids)
    if request.logprobs is not None:
        body["logprobs"] = request.logprobs
    if request.constraint is not None:
        body["structured_outputs"] = _form(request)
    return body


def _form(request: Request) -> dict[str, Any]:
    assert request.constraint is not None
    kind, text = request.constraint.kind, request.constraint.text
    if kind == "json_schema":
        return {"json": json.loads(text)}
    return {kind: json.loads(text) if kind == "choice" else text}
