"""Speaks as vLLM does as far as llmctl asks it, over llmctl's own engine: CI has no vLLM."""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from llmctl.inference import request as ours
from llmctl.inference.engine import Engine

TAKEN = {
    "max_tokens", "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "min_tokens", "seed", "cache_salt", "logprobs",
}  # fmt: skip


def scores(event: ours.Event) -> dict[str, Any]:
    found = event.logprobs or ()
    return {
        "tokens": [f"token_id:{one.token}" for one in found],
        "token_logprobs": [one.logprob for one in found],
        "top_logprobs": [{f"token_id:{index}": value for index, value in one.top} for one in found],
        "text_offset": [0] * len(found),
    }


def form(asked: dict[str, Any]) -> ours.Constraint | None:
    for kind, value in (asked.get("structured_outputs") or {}).items():
        name = "json_schema" if kind == "json" else kind
        return ours.Constraint(name, value if isinstance(value, str) else json.dumps(value))
    return None


def create(engine: Engine) -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(
            f'# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{engine="0"}} {engine.running}\n'
            f'# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{{engine="0"}} {engine.waiting}\n'
            f'# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{{engine="0"}} {engine.cache_usage}\n'
        )

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        asked = await request.json()
        if asked["prompt"] == [66, 66]:
            return JSONResponse({"error": {"message": "refused", "code": 400}}, status_code=400)
        events: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        handle = engine.submit(
            ours.Request(
                asked["prompt"],
                stop_ids=asked["stop_token_ids"],
                top_k=max(asked["top_k"], 0),
                allowed_ids=asked.get("allowed_token_ids"),
                logit_bias={int(index): bias for index, bias in asked.get("logit_bias", {}).items()},
                constraint=form(asked),
                **{name: asked[name] for name in TAKEN & asked.keys()},
            ),
            lambda event: loop.call_soon_threadsafe(events.put_nowait, event),
        )

        async def chunks() -> AsyncIterator[str]:
            try:
                event = None
                while event is None or event.finish_reason is None:
                    event = await events.get()
                    choice = {"index": 0, "text": "", "finish_reason": event.finish_reason}
                    choice |= {"token_ids": list(event.token_ids), "logprobs": scores(event)}
                    yield f"data: {json.dumps({'choices': [choice]})}\n\n"
                yield "data: [DONE]\n\n"
            finally:
                handle.cancel()

        return StreamingResponse(chunks(), media_type="text/event-stream")

    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--uds")
    given, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    with Engine.open(given.model) as engine:
        uvicorn.run(create(engine), uds=given.uds, log_level="warning")


if __name__ == "__main__":
    main()
