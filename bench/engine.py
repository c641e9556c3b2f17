"""Output tokens per second of the engine alone, at 1, 8 and 32 sequences, beside what the machine allows.

    python bench/engine.py --model smollm2-135m --sequences 1 8 32
    python bench/engine.py --model tiny --vocab 4096 --sampled 8 --sequences 64 --prompt 40 --output 64

Random weights; 128 tokens in, 128 out. The bound is what reading weights and cache once a step takes at the bandwidth
measured here. With `--sampled N`, what a rollout asks: answers drawn at temperature 1 with their log-probabilities, N
to a prompt, told at their end; prompts are part of the time.
"""

from __future__ import annotations

import argparse
import time

import torch

from llmctl.config.model import ModelConfig
from llmctl.inference.engine import Engine
from llmctl.inference.linears import prepare
from llmctl.inference.options import Options
from llmctl.inference.request import Request
from llmctl.model.transformer import Transformer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def bandwidth() -> float:
    """Bytes per second of reading memory, the best of ten."""
    block = torch.ones(64 << 20)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        block.sum()
        best = min(best, time.perf_counter() - started)
    return block.numel() * 4 / best


def rollouts(engine: Engine, sequences: int, prompt: int, output: int, group: int) -> float:
    """Tokens per second of groups of answers, the best of six times."""
    vocab, best = engine.model.vocab_size, 0.0
    for number in range(6):
        generator = torch.Generator().manual_seed(number)
        prompts = torch.randint(vocab, (-(-sequences // group), prompt), generator=generator).tolist()
        requests = [
            Request(
                prompts[place // group],
                max_tokens=output,
                seed=number * sequences + place,
                stop_ids=(),
                logprobs=0,
                logprobs_of="sampled",
            )
            for place in range(sequences)
        ]
        started = time.perf_counter()
        engine.generate(requests)
        best = max(best, sequences * output / (time.perf_counter() - started))
    return best


def measure(engine: Engine, sequences: int, prompt: int, output: int, shared: int) -> tuple[float, float]:
    """Decoded tokens per second of all sequences together, and seconds to the first token of the last one."""
    vocab, generator = engine.model.vocab_size, torch.Generator().manual_seed(sequences)
    common = torch.randint(vocab, (shared,), generator=generator).tolist()
    requests = [
        Request(
            [*common, *torch.randint(vocab, (prompt,), generator=generator).tolist()],
            max_tokens=output,
            temperature=0.0,
            stop_ids=(),
        )
        for _ in range(sequences)
    ]
    started = time.perf_counter()
    handles = [engine.submit(request) for request in requests]
    streams = [iter(handle) for handle in handles]
    for stream in streams:
        next(stream)
    first = time.perf_counter()
    for stream in streams:
        for _ in stream:
            pass
    return sequences * (output - 1) / (time.perf_counter() - first), first - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--precision", default="fp32", choices=DTYPES)
    parser.add_argument("--weights", default="plain", choices=("plain", "int8", "int4"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--shared", type=int, default=0, help="tokens of a prefix that all sequences have")
    parser.add_argument("--sampled", type=int, default=0, metavar="N", help="answers of a rollout, N to a prompt")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = Transformer(ModelConfig.model_validate(arguments.model), arguments.vocab).to(DTYPES[arguments.precision])
    model.init_weights(0)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    speed = bandwidth()
    print(f"memory {speed / 1e9:.1f} GB/s, weights {weights / 1e6:.0f} MB: {speed / weights:.1f} steps/s at most")
    model = prepare(model, arguments.weights)
    with Engine(model, None, max_running=max(arguments.sequences), options=Options()) as engine:
        engine.generate([Request([1, 2, 3], max_tokens=4, stop_ids=())])
        for count in arguments.sequences:
            if arguments.sampled:
                rate = rollouts(engine, count, arguments.prompt, arguments.output, arguments.sampled)
                print(f"{count:3d} sequences: {rate:7.1f} tokens/s")
                continue
            rate, first = measure(engine, count, arguments.prompt, arguments.output, arguments.shared)
            print(f"{count:3d} sequences: {rate:7.1f} tokens/s, first token of all after {first:.2f} s")


if __name__ == "__main__":
    main()
