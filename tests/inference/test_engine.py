"""The engine with a real tokenizer: the same answers alone and in a crowd, and every way an answer can end."""

import dataclasses
import json
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmctl.config.errors import InputError, UsageError
from llmctl.config.model import ModelConfig
from llmctl.inference.engine import Engine, EngineClosedError
from llmctl.inference.request import Completion, Event, Request
from llmctl.model.attention import packed
from llmctl.model.huggingface import TOKENIZER_FILES
from llmctl.model.transformer import Transformer
from llmctl.tokens.tokenizer import Tokenizer
from tests.inference.conftest import VOCAB, lively

PROMPTS = [[1, 40, 41], [1], [1, *range(50, 80)], [1, 7, 300, 301, 302, 303], [1, 500, 20]]


def uncached(model: Transformer, ids: list[int]) -> torch.Tensor:
    """Logits of the last position, without any cache."""
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        hidden = model(tokens, torch.arange(len(ids))[None], packed(torch.zeros(1, len(ids))))
        return model.logits(hidden)[0, -1]


def requests(**settings: object) -> list[Request]:
    base = {"max_tokens": 24, "stop_ids": (), **settings}
    return [Request(prompt, **{"seed": place, **base}) for place, prompt in enumerate(PROMPTS)]  # type: ignore[arg-type]


def test_greedy_is_the_argmax_without_a_cache(engine: Engine) -> None:
    for request, answer in zip(requests(temperature=0.0), engine.generate(requests(temperature=0.0)), strict=True):
        ids = list(request.prompt_ids)
        for token in answer.token_ids:
            assert token == int(uncached(engine.model, ids).argmax())
            ids.append(token)
        assert answer.finish_reason == "length"


def test_greedy_equals_transformers(checkpoint: Path, engine: Engine) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    for prompt, answer in zip(PROMPTS, engine.generate(requests(temperature=0.0)), strict=True):
        theirs = reference.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=24, eos_token_id=None, pad_token_id=3
        )
        assert list(answer.token_ids) == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}]
)
def test_a_batch_gives_what_each_request_gives_alone(engine: Engine, settings: dict[str, float]) -> None:
    # Five requests in four rows: the fifth joins when another leaves.
    alone = [engine.generate([request])[0] for request in requests(**settings)]
    assert engine.generate(requests(**settings)) == alone
    assert [engine.generate([request])[0] for request in requests(**settings)] == alone


def test_requests_of_all_lengths_join_and_leave(engine: Engine) -> None:
    crowd = [
        Request([1, *range(10, 10 + place % 7)], max_tokens=1 + place * 5 % 23, seed=place, stop_ids=())
        for place in range(20)
    ]
    answers = engine.generate(crowd)
    assert [len(answer.token_ids) for answer in answers] == [request.max_tokens for request in crowd]
    assert answers == [engine.generate([request])[0] for request in crowd]
    assert (engine.running, engine.waiting) == (0, 0)


def test_seeds(engine: Engine) -> None:
    one, same, other = (
        engine.generate([Request([1], max_tokens=20, seed=seed, stop_ids=())])[0].token_ids for seed in (5, 5, 6)
    )
    assert one == same
    assert one != other
    fresh = {engine.generate([Request([1], max_tokens=20, stop_ids=())])[0].token_ids for _ in range(3)}
    assert len(fresh) == 3


def test_the_stream_is_the_answer(engine: Engine) -> None:
    for request in requests(temperature=1.0, logprobs=2):
        events = list(engine.submit(request))
        answer = engine.generate([request])[0]
        assert "".join(event.text for event in events) == answer.text == engine.tokenizer.decode(answer.token_ids)
        assert [event.token_ids for event in events] == [(token,) for token in answer.token_ids]
        assert [event.finish_reason for event in events] == [None] * 23 + ["length"]
        assert answer.logprobs is not None
        assert tuple(logprob for event in events for logprob in event.logprobs or ()) == answer.logprobs


def test_logprobs_are_those_of_the_raw_distribution(engine: Engine) -> None:
    answer = engine.generate(
        [Request(PROMPTS[0], max_tokens=8, temperature=0.5, top_k=3, seed=0, stop_ids=(), logprobs=4)]
    )[0]
    ids = list(PROMPTS[0])
    assert answer.logprobs is not None
    for entry, token in zip(answer.logprobs, answer.token_ids, strict=True):
        table = uncached(engine.model, ids).log_softmax(-1)
        assert entry.token == token
        assert entry.logprob == pytest.approx(table[token].item(), abs=1e-4)
        assert [value for _, value in entry.top] == pytest.approx(table.topk(4).values.tolist(), abs=1e-4)
        ids.append(token)


def test_logprobs_of_the_prompt(engine: Engine) -> None:
    for limit in (3, 0):
        (answer,) = engine.generate([Request(PROMPTS[2], max_tokens=limit, prompt_logprobs=2, stop_ids=())])
        assert answer.prompt_logprobs is not None
        assert answer.prompt_logprobs[0] is None
        assert len(answer.prompt_logprobs) == len(PROMPTS[2])
        for place, entry in enumerate(answer.prompt_logprobs[1:], start=1):
            table = uncached(engine.model, PROMPTS[2][:place]).log_softmax(-1)
            assert entry is not None
            assert entry.token == PROMPTS[2][place]
            assert entry.logprob == pytest.approx(table[entry.token].item(), abs=1e-4)
            assert [value for _, value in entry.top] == pytest.approx(table.topk(2).values.tolist(), abs=1e-4)
        assert (len(answer.token_ids), answer.finish_reason) == (limit, "length")


def first_answer(engine: Engine) -> Completion:
    return engine.generate([Request(PROMPTS[0], max_tokens=24, temperature=0.0, stop_ids=())])[0]


def test_a_stop_id_ends_the_answer_and_is_not_in_its_text(engine: Engine) -> None:
    whole = first_answer(engine)
    stop = whole.token_ids[9]
    place = whole.token_ids.index(stop)
    answer = engine.generate([Request(PROMPTS[0], max_tokens=24, temperature=0.0, stop_ids=(stop,))])[0]
    assert answer.finish_reason == "stop"
    assert answer.token_ids == whole.token_ids[: place + 1]
    assert answer.text == engine.tokenizer.decode(whole.token_ids[:place])


def test_stop_ids_are_the_tokenizers_where_left_out(engine: Engine) -> None:
    answers = engine.generate([Request([1], temperature=1.5, seed=seed) for seed in range(40)])
    ended = [answer for answer in answers if answer.finish_reason == "stop"]
    assert ended
    assert all(answer.token_ids[-1] in engine.tokenizer.stop_ids for answer in ended)


def test_a_stop_string_across_tokens_ends_the_answer_before_it(engine: Engine) -> None:
    whole = first_answer(engine)
    pieces = [engine.tokenizer.piece_bytes(token).decode("utf-8", "replace") for token in whole.token_ids]
    stop = pieces[6][-1:] + pieces[7] + pieces[8][:1]
    assert stop in whole.text
    answer = engine.generate(
        [Request(PROMPTS[0], max_tokens=24, temperature=0.0, stop_ids=(), stop=[stop, "never said"])]
    )[0]
    assert answer.finish_reason == "stop"
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert len(answer.token_ids) <= 9


def test_penalties_see_what_was_generated(engine: Engine) -> None:
    asked = Request(
        PROMPTS[0], max_tokens=24, temperature=0.0, stop_ids=(), frequency_penalty=-9.0, presence_penalty=2.0
    )
    ids: list[int] = []
    for token in engine.generate([asked])[0].token_ids:
        logits = uncached(engine.model, [*PROMPTS[0], *ids])
        taken = torch.zeros(VOCAB)
        for index in set(ids):
            taken[index] = -9.0 * ids.count(index) + 2.0
        assert token == int((logits - taken).argmax())
        ids.append(token)
    assert tuple(ids) != first_answer(engine).token_ids


def test_min_tokens_keep_an_answer_from_ending(engine: Engine) -> None:
    whole = first_answer(engine)
    stop = whole.token_ids[3]
    settings = {"max_tokens": 24, "temperature": 0.0, "min_tokens": 10}
    answer = engine.generate([Request(PROMPTS[0], stop_ids=(stop,), **settings)])[0]  # type: ignore[arg-type]
    assert stop not in answer.token_ids[:10]
    assert len(answer.token_ids) >= 10
    text = engine.tokenizer.decode(whole.token_ids[2:4])
    answer = engine.generate([Request(PROMPTS[0], stop_ids=(), stop=(text,), **settings)])[0]  # type: ignore[arg-type]
    assert answer.token_ids[:10] == whole.token_ids[:10]
    assert text in answer.text


def test_the_context_ends_the_answer(engine: Engine) -> None:
    prompt = [1] * 90
    for limit in (None, 1000):
        answer = engine.generate([Request(prompt, max_tokens=limit, stop_ids=(), seed=0)])[0]
        assert answer.finish_reason == "length"
        assert len(answer.token_ids) == engine.context - 90 == 6
    assert len(engine.generate([Request([1] * 95, stop_ids=(), seed=0)])[0].token_ids) == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prompt_ids": [1] * 96}, "96 tokens and leaves no room in the context of 96"),
        ({"prompt_ids": []}, "prompt_ids"),
        ({"prompt_ids": [VOCAB]}, "token id outside"),
        ({"prompt_ids": [-1]}, "token id outside"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "prompt_logprobs": 1}, "max_tokens"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"logit_bias": {VOCAB: 1.0}}, "token id 512 is outside"),
        ({"allowed_ids": [-1]}, "token id -1 is outside"),
        ({"banned_ids": range(VOCAB)}, "holds every id"),
        ({"stop": [""]}, "stop"),
        ({"stop": "END"}, "stop"),
        ({"logprobs": -1}, "logprobs"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_requests_are_refused(engine: Engine, settings: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        engine.submit(Request(**{"prompt_ids": [1], **settings}))  # type: ignore[arg-type]


def test_the_context_bounds_the_cache(checkpoint: Path) -> None:
    with Engine.open(checkpoint, max_running=2) as engine:
        assert engine.context == 96
        assert engine._scheduler.cache.data.shape == (2, 2 * 96 // 16, 16, 2 * 2, 16)  # keys and values
        assert len(engine.generate([Request([1], stop_ids=(), seed=0)])[0].token_ids) == 95


def test_events_can_be_delivered_to_a_callback(engine: Engine) -> None:
    request = Request([1, 7], max_tokens=9, stop_ids=(), seed=4)
    whole = engine.generate([request])[0]
    got: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
    threads: set[str] = set()

    def deliver(event: Event | BaseException) -> None:
        threads.add(threading.current_thread().name)
        got.put(event)

    handle = engine.submit(request, deliver)
    with pytest.raises(ValueError, match="delivered elsewhere"):
        handle.result()
    events = [got.get(timeout=30) for _ in range(9)]
    assert [getattr(event, "token_ids", None) for event in events] == [(token,) for token in whole.token_ids]
    assert [getattr(event, "finish_reason", "") for event in events] == [None] * 8 + ["length"]
    assert threads == {"llmctl-engine"}


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_a_callback_is_told_of_the_end(checkpoint: Path, end: str) -> None:
    got: list[Event | BaseException] = []
    started, gate, ended = threading.Event(), threading.Event(), threading.Event()

    def deliver(event: Event | BaseException) -> None:
        got.append(event)
        started.set()
        gate.wait(30)
        if isinstance(event, BaseException) or event.finish_reason is not None:
            ended.set()

    with Engine.open(checkpoint) as engine:
        handle = engine.submit(Request([1], stop_ids=(), seed=0), deliver)
        assert started.wait(30)  # the engine's thread now waits at the gate, after the first of 95 tokens
        closer = threading.Thread(target=engine.close if end == "close" else handle.cancel)
        closer.start()
        while engine.alive and closer.is_alive():
            time.sleep(0.001)
        gate.set()
        assert ended.wait(30)
        closer.join()
    assert len(got) == 2
    assert isinstance(got[1], EngineClosedError) if end == "close" else got[1] == Event((), "", "cancelled")


def test_bfloat16_runs(checkpoint: Path) -> None:
    with Engine.open(checkpoint, dtype=torch.bfloat16) as engine:
        assert engine.model.dtype == engine._scheduler.cache.data.dtype == torch.bfloat16
        assert len(engine.generate([Request([1], max_tokens=5, stop_ids=(), seed=0)])[0].token_ids) == 5


def test_a_checkpoint_carries_its_tokenizer(checkpoint: Path, tokenizer_directory: Path) -> None:
    for name in TOKENIZER_FILES:
        assert (checkpoint / name).read_bytes() == (tokenizer_directory / name).read_bytes()
    generation = json.loads((checkpoint / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (1, [2, 5], 3)
    text = "class C(object):\n    pass  # caf\u00e9"
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(checkpoint)
    assert theirs.encode(text, add_special_tokens=False) == Tokenizer.open(checkpoint).encode(text)


def endless() -> Request:
    return Request([1], stop_ids=(), seed=0)


@pytest.fixture
def slow() -> Iterator[Engine]:
    """An engine with one row and a long context, so that a second request waits."""
    with Engine(lively(context=4096), None, max_running=1) as engine:
        yield engine


def test_cancelling_frees_the_place(slow: Engine) -> None:
    first, second, third = (
        slow.submit(endless()),
        slow.submit(endless()),
        slow.submit(Request([1], max_tokens=3, stop_ids=())),
    )
    next(iter(first))
    second.cancel()  # still waiting
    assert second.result().finish_reason == "cancelled"
    first.cancel()
    answer = first.result()
    assert answer.finish_reason == "cancelled"
    assert len(answer.token_ids) < 4000
    assert len(third.result().token_ids) == 3
    first.cancel()
    assert list(first) == []


def test_closing_tells_everyone_who_waits(slow: Engine) -> None:
    running, waiting = slow.submit(endless()), slow.submit(endless())
    next(iter(running))
    slow.close()
    for handle in (running, waiting):
        with pytest.raises(EngineClosedError):
            handle.result()
    with pytest.raises(EngineClosedError):
        slow.submit(endless())
    with pytest.raises(EngineClosedError):
        slow.score([([1], [2])])
    assert not slow.alive
    assert not slow._thread.is_alive()
    slow.close()


def test_a_failing_step_reaches_every_handle(slow: Engine) -> None:
    running, waiting = slow.submit(endless()), slow.submit(endless())
    next(iter(running))
    slow.model.config.__dict__["rope_base"] = "broken"  # the next forward pass raises
    for handle in (running, waiting):
        with pytest.raises(TypeError):
            handle.result()
    assert not slow.alive
    with pytest.raises(EngineClosedError) as caught:
        slow.submit(endless())
    assert isinstance(caught.value.__cause__, TypeError)


def test_many_threads_ask_at_once(engine: Engine) -> None:
    alone = [engine.generate([request])[0] for request in requests()]
    got: dict[int, list[Completion]] = {}

    def ask(place: int) -> None:
        got[place] = [engine.generate([request])[0] for request in requests()]

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(got[place] == alone for place in range(4))


def test_an_idle_engine_sleeps(engine: Engine) -> None:
    engine.generate([Request([1], max_tokens=2, stop_ids=())])
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.15


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tokenizer: Tokenizer) -> None:
    model = Transformer(ModelConfig(name="nano"), VOCAB - 1)
    with pytest.raises(InputError, match="the tokenizer has 512 ids, the model 511"):
        Engine(model, tokenizer)


def test_requests_are_values() -> None:
    assert dataclasses.replace(endless(), seed=1).seed == 1


def test_a_special_token_is_text_where_it_is_asked_for(engine: Engine) -> None:
    token = engine.tokenizer.special["<|im_start|>"]
    asked = Request([1, 5], max_tokens=3, allowed_ids=[token], stop_ids=[])
    assert engine.generate([asked])[0].text == ""
    assert engine.generate([dataclasses.replace(asked, spelled_ids=[token])])[0].text == 3 * "<|im_start|>"
