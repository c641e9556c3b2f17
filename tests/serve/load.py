"""Many clients at one time, that count for themselves what they were told; bench/serve_stress.py has more of them."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
LONGEST_PROMPT = 150
JSON = {"Content-Type": "application/json"}
LETTERS = 'the list of a file é 漢字 — ü 😀 {}[]"\\\n'
# Bodies that are no requests, and what each must get.
MALFORMED: list[tuple[str, bytes, int]] = [
    (COMPLETIONS, b"{", 400),
    (COMPLETIONS, b"[1]", 400),
    (COMPLETIONS, b"[" * 5000, 400),
    (COMPLETIONS, b"\xff\xfe", 400),
    (COMPLETIONS, b'{"model": "MODEL", "prompt": "a", "temperature": NaN}', 400),
    (COMPLETIONS, b'{"model": "MODEL", "prompt": "a", "n": 1000000}', 400),
    (COMPLETIONS, b'{"model": "MODEL", "prompt": [99999999]}', 400),
    (COMPLETIONS, b'{"model": "MODEL", "prompt": "a", "max_tokens": 1000000}', 400),
    (COMPLETIONS, b'{"model": "other", "prompt": "a"}', 404),
    (CHATS, b'{"model": "MODEL", "messages": []}', 400),
    (CHATS, b'{"model": "MODEL", "messages": [{"role": "user", "content": "a"}], "tool_choice": "required"}', 400),
    ("/v1/none", b"{}", 404),
]


@dataclass
class Counted:
    """What clients were told, under the names of /metrics."""

    values: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    health: list[float] = field(default_factory=list)

    def response(self, route: str, status: int) -> None:
        """One response."""
        known = route if route in (COMPLETIONS, CHATS) else "other"
        self.values[f"llmctl:http_responses_total{{route={known},status={status}}}"] += 1
        if status >= 500:
            self.wrong.append(f"{route} gave {status}")

    def ended(self, reason: str, prompt: int, completion: int) -> None:
        """One sequence."""
        self.values[f"vllm:request_success_total{{finished_reason={reason}}}"] += 1
        self.values["vllm:prompt_tokens_total"] += prompt
        self.values["vllm:generation_tokens_total"] += completion


async def metrics(http: httpx.AsyncClient) -> Counter[str]:
    """Values of /metrics by name and the labels but the model's."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families((await http.get("/metrics")).text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()) if key != "model_name")
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def idle(http: httpx.AsyncClient, seconds: float = 30.0) -> Counter[str]:
    """The metrics once nothing runs or waits any more."""
    end = time.monotonic() + seconds
    while True:
        found = await metrics(http)
        if not found["vllm:num_requests_running"] + found["vllm:num_requests_waiting"]:
            return found
        assert time.monotonic() < end, "sequences still run"
        await asyncio.sleep(0.02)


async def events(response: httpx.Response) -> AsyncIterator[Any]:
    """The bodies of a stream; each frame must be whole UTF-8, and [DONE] the last."""
    done = False
    async for line in response.aiter_lines():
        if line:
            assert not done
            done = line == "data: [DONE]"
            if not done:
                yield json.loads(line.removeprefix("data: "))
    assert done, "the stream ended without [DONE]"


async def in_turns(clients: int, work: list[Callable[[], Awaitable[None]]]) -> None:
    """Do all of `work`, `clients` at one time."""
    queue = iter(work)

    async def client() -> None:
        for task in queue:
            await task()

    await asyncio.gather(*(client() for _ in range(clients)))


def client(url: str) -> httpx.AsyncClient:
    """A client with as many connections as it likes."""
    return httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None))


class Mixed:
    """Greedy requests whole and in streams, clients that leave, and bodies that are no requests.

    Args:
        http: to the server.
        model: its name there.
        context: of the model; so long that no answer fills it before its client leaves.
        seed: what is asked, and in which order.
    """

    def __init__(self, http: httpx.AsyncClient, model: str, context: int, seed: int) -> None:
        self._http, self._model, self._context = http, model, context
        self._random = random.Random(seed)
        self.counted = Counted()
        self._known: list[tuple[dict[str, Any], str, str]] = []

    async def learn(self, count: int) -> None:
        """Ask `count` different requests one by one: their answers are what must come in the crowd."""
        begin = [self._random.randrange(40, 200) for _ in range(40)]
        for _ in range(count):
            prompt = [self._random.randrange(40, 300) for _ in range(self._random.randint(1, LONGEST_PROMPT))]
            prompt = [*begin, *prompt] if self._random.random() < 0.3 else prompt
            asked = {
                "model": self._model,
                "prompt": prompt,
                "max_tokens": self._random.randint(1, 40),
                "temperature": 0,
            }
            choice = (await self._http.post(COMPLETIONS, json=asked)).json()["choices"][0]
            self._known.append((asked, choice["text"], choice["finish_reason"]))

    async def run(self, requests: int, clients: int) -> None:
        """Ask `requests` at random from `clients` clients, while /health is watched."""
        kinds = [self._whole] * 7 + [self._stream] * 6 + [self._leave_stream] * 3 + [self._leave_whole, self._malformed]
        kinds.append(self._malformed)
        before = await idle(self._http)
        watching = asyncio.create_task(self._watch())
        await in_turns(clients, [self._random.choice(kinds) for _ in range(requests)])
        watching.cancel()
        after = await idle(self._http)
        self.moved = Counter({name: after[name] - before[name] for name in after})

    def unequal(self) -> list[str]:
        """Counts of the server that are not the clients' own; of what nobody read whole it may have more tokens."""
        own = self.counted.values
        names = {
            name
            for name in (*own, *self.moved)
            if name.startswith(("llmctl:http_responses_total", "vllm:request_success_total"))
        }
        names = {name for name in names if "route=/metrics" not in name and "route=/health" not in name}
        wrong = [
            f"{name}: {self.moved[name]:g}, clients {own[name]}"
            for name in (*names, "vllm:prompt_tokens_total")
            if self.moved[name] != own[name]
        ]
        generated = "vllm:generation_tokens_total"
        if self.moved[generated] < own[generated]:
            wrong.append(f"{generated}: {self.moved[generated]:g}, clients {own[generated]} at least")
        return wrong

    async def _watch(self) -> None:
        async with client(str(self._http.base_url)) as http:
            while True:
                began = time.monotonic()
                assert (await http.get("/health")).status_code == 200
                self.counted.health.append(time.monotonic() - began)
                await asyncio.sleep(0.05)

    def _check(self, told: tuple[str, str], wanted: tuple[str, str]) -> None:
        if told != wanted:
            self.counted.wrong.append(f"{told} instead of {wanted}")

    async def _whole(self) -> None:
        asked, *wanted = self._random.choice(self._known)
        answer = await self._http.post(COMPLETIONS, json=asked)
        self.counted.response(COMPLETIONS, answer.status_code)
        body = answer.json()
        (choice,), usage = body["choices"], body["usage"]
        self.counted.ended(choice["finish_reason"], usage["prompt_tokens"], usage["completion_tokens"])
        self._check((choice["text"], choice["finish_reason"]), (wanted[0], wanted[1]))

    async def _stream(self) -> None:
        asked, *wanted = self._random.choice(self._known)
        asked = {**asked, "stream": True, "stream_options": {"include_usage": True}}
        text, reason, usage = "", "", {}
        async with self._http.stream("POST", COMPLETIONS, json=asked) as response:
            self.counted.response(COMPLETIONS, response.status_code)
            async for body in events(response):
                usage = body["usage"] or usage
                for choice in body["choices"]:
                    text += choice["text"]
                    reason = choice["finish_reason"] or reason
        self.counted.ended(reason, usage["prompt_tokens"], usage["completion_tokens"])
        self._check((text, reason), (wanted[0], wanted[1]))

    def _long(self) -> dict[str, Any]:
        """A request that no client will have read to its end."""
        prompt = [self._random.randrange(40, 300) for _ in range(self._random.randint(1, 20))]
        most = self._context - len(prompt)
        return {"model": self._model, "prompt": prompt, "max_tokens": most, "ignore_eos": True}

    async def _leave_stream(self) -> None:
        asked = {**self._long(), "stream": True}
        enough = self._random.randint(1, 20)
        async with self._http.stream("POST", COMPLETIONS, json=asked) as response:
            self.counted.response(COMPLETIONS, response.status_code)
            lines = (line async for line in response.aiter_lines() if line)
            for _ in range(enough):
                await anext(lines)
        self.counted.ended("abort", len(asked["prompt"]), enough)

    async def _leave_whole(self) -> None:
        asked = self._long()
        try:
            await self._http.post(COMPLETIONS, json=asked, timeout=httpx.Timeout(120, read=0.7))
        except httpx.ReadTimeout:
            self.counted.response(COMPLETIONS, 499)
            self.counted.ended("abort", len(asked["prompt"]), 0)
        else:
            raise AssertionError("an answer that was to be long came at once")

    async def _malformed(self) -> None:
        route, body, status = self._random.choice(MALFORMED)
        body = body.replace(b"MODEL", self._model.encode())
        answer = await self._http.post(route, content=body, headers=JSON)
        self.counted.response(route, answer.status_code)
        if answer.status_code != status or "error" not in answer.json():
            self.counted.wrong.append(f"{body[:60]!r} gave {answer.status_code}, not {status}")


async def disconnects(http: httpx.AsyncClient, model: str, context: int, count: int, seed: int) -> list[float]:
    """Leave `count` requests at random points; the seconds until each one's place was free."""
    chance = random.Random(seed)
    waits = []
    for _ in range(count):
        asked = {
            "model": model,
            "prompt": [50] * chance.randint(1, 60),
            "ignore_eos": True,
            "stream": chance.random() < 0.7,
        }
        asked["max_tokens"] = context - len(asked["prompt"])
        try:
            async with (
                asyncio.timeout(chance.uniform(0.001, 0.08)),
                http.stream("POST", COMPLETIONS, json=asked) as response,
            ):
                async for _ in response.aiter_bytes():
                    pass
        except TimeoutError:
            pass
        left = time.monotonic()
        await idle(http)
        waits.append(time.monotonic() - left)
    return waits


def twin(chance: random.Random, model: str) -> tuple[str, dict[str, Any]]:
    """A random request that has one answer: sampled with a seed, or greedy."""

    def words(least: int, most: int) -> str:
        return "".join(chance.choices(LETTERS, k=chance.randint(least, most)))

    asked: dict[str, Any] = {"model": model, "max_tokens": chance.randint(1, 40), "seed": chance.randrange(2**40)}
    asked["temperature"] = chance.choice([0, 0.7, 1.0, 1.5])
    asked["n"] = chance.choice([1, 1, 1, 2, 3])
    if chance.random() < 0.6:
        asked["stop"] = [words(1, 2) for _ in range(chance.randint(1, 4))]
    if chance.random() < 0.3:
        asked["logprobs"] = 2
    if chance.random() < 0.5:
        return COMPLETIONS, {**asked, "prompt": words(0, 30), "echo": chance.random() < 0.3}
    if "logprobs" in asked:
        asked |= {"logprobs": True, "top_logprobs": 2}
    return CHATS, {**asked, "messages": [{"role": "user", "content": words(0, 30)}]}


async def compare(http: httpx.AsyncClient, route: str, asked: dict[str, Any]) -> tuple[str, bool]:
    """Ask whole and in a stream; what differs, and whether a stop string ended a text or it holds more than ASCII."""
    whole = (await http.post(route, json=asked)).json()
    said = [choice["text"] if route == COMPLETIONS else choice["message"]["content"] for choice in whole["choices"]]
    texts, reasons, scores, usage = [""] * len(said), [""] * len(said), [0] * len(said), None
    streamed = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    async with http.stream("POST", route, json=streamed) as response:
        async for body in events(response):
            usage = body["usage"] or usage
            for choice in body["choices"]:
                at = choice["index"]
                texts[at] += choice["text"] if route == COMPLETIONS else choice["delta"].get("content", "")
                reasons[at] = choice["finish_reason"] or reasons[at]
                scores[at] += scored(choice)
    told = (texts, reasons, scores, usage)
    wanted = (
        said,
        [one["finish_reason"] for one in whole["choices"]],
        list(map(scored, whole["choices"])),
        whole["usage"],
    )
    odd = any(character >= "\x80" for character in itertools.chain(*said)) or "stop" in reasons
    return ("" if told == wanted else f"{asked}: {told} instead of {wanted}"), odd


def scored(choice: dict[str, Any]) -> int:
    """How many tokens have log-probabilities."""
    logprobs = choice.get("logprobs") or {}
    return len(logprobs.get("tokens") or logprobs.get("content") or ())


async def twins(http: httpx.AsyncClient, model: str, count: int, clients: int, seed: int) -> tuple[list[str], int]:
    """`count` random requests, whole and streamed; what differs, and how many held something odd."""
    chance = random.Random(seed)
    found: list[tuple[str, bool]] = []

    async def one() -> None:
        found.append(await compare(http, *twin(chance, model)))

    await in_turns(clients, [one] * count)
    return [fault for fault, _ in found if fault], sum(odd for _, odd in found)
