"""JSON bodies of the OpenAI API. A key is there only where it says something: no optional object is sent as null."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmctl.inference.request import TokenLogprob
from llmctl.tokens.tokenizer import Tokenizer

Json = dict[str, Any]
Scored = tuple[int, TokenLogprob | None]
"""A token and what is known of it: nothing of the first token of a prompt."""
LEAST_LOGPROB = -9999.0  # JSON has no -inf; OpenAI's own stand-in


@dataclass(frozen=True)
class Envelope:
    """What all chunks of one response share.

    Attributes:
        kind: `chat.completion`, `chat.completion.chunk` or `text_completion`.
        model: the served model's name.
        id: unique; made where left out.
        created: Unix seconds.
    """

    kind: str
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def body(self, choices: Sequence[Json], **more: Any) -> Json:
        """A response or chunk with these choices."""
        prefix = "cmpl" if self.kind == "text_completion" else "chatcmpl"
        return {
            "id": f"{prefix}-{self.id}",
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
            **more,
        }


@dataclass
class Usage:
    """Tokens of one request: prompts once each, generated tokens of all choices."""

    prompt_tokens: int
    completion_tokens: int = 0

    def body(self) -> Json:
        """OpenAI's `usage`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


def sse(body: Json) -> bytes:
    """One server-sent event. JSON escapes line breaks, so one `data:` line always holds it."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n\n"


SSE_DONE = b"data: [DONE]\n\n"


def models(name: str, created: int, context: int) -> Json:
    """`GET /v1/models`; `max_model_len` is vLLM's extension, which clients use to size their prompts."""
    model = {"id": name, "object": "model", "created": created, "owned_by": "llmctl", "max_model_len": context}
    return {"object": "list", "data": [model]}


def token_text(tokenizer: Tokenizer, index: int) -> str:
    r"""A token as a string: its text, a special token's name, or `bytes:\xe2\x80` where it is part of a character."""
    piece = tokenizer.piece_bytes(index)
    if not piece:
        return next((name for name, special in tokenizer.special.items() if special == index), f"<{index}>")
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenLogprob]) -> Json:
    """`choices[].logprobs` of a chat completion or chunk."""

    def entry(index: int, logprob: float) -> Json:
        piece = tokenizer.piece_bytes(index)
        return {"token": token_text(tokenizer, index), "logprob": max(logprob, LEAST_LOGPROB), "bytes": list(piece)}

    content = [
        {**entry(token.token, token.logprob), "top_logprobs": [entry(*pair) for pair in token.top]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[Scored], offset: int, *, with_top: bool
) -> tuple[Json, int]:
    """`choices[].logprobs` of a completion or chunk, and the text offset behind it.

    Args:
        tokenizer: the model's.
        tokens: in order.
        offset: characters in front of the first token.
        with_top: whether alternatives were asked for.
    """
    texts: list[str] = []
    logprobs: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for token, entry in tokens:
        texts.append(token_text(tokenizer, token))
        offsets.append(offset)
        offset += len(tokenizer.piece_bytes(token).decode("utf-8", errors="ignore"))
        logprobs.append(None if entry is None else max(entry.logprob, LEAST_LOGPROB))
        top = None if entry is None else entry.top
        tops.append(
            None if top is None else {token_text(tokenizer, index): max(value, LEAST_LOGPROB) for index, value in top}
        )
    body: Json = {"text_offset": offsets, "token_logprobs": logprobs, "tokens": texts}
    if with_top:
        body["top_logprobs"] = tops
    return body, offset
