"""What every architecture switch must keep: shape, causality, equal cached results, gradients, ability to learn."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional

from llmctl.inference.cache import KVCache, Span
from tests.model.shapes import (
    GROUPED,
    LATENT,
    LATENT_QUERIES,
    VOCAB,
    logits_of,
    make,
    one_document_each,
    one_document_each_attended,
    packed_row,
    random_tokens,
)

GPT = {
    "kv_heads": 4,
    "positions": "learned",
    "attention": {"qkv_bias": True, "output_bias": True},
    "norm": {"name": "layer", "bias": True},
    "feed_forward": {"activation": "gelu_tanh", "bias": True},
}
FEW = {"count": 4, "top": 2, "ffn_width": 24}
SWITCHES: dict[str, dict[str, Any]] = {
    "mha": {"kv_heads": 4},
    "mqa": {"kv_heads": 1},
    "head_width": {"head_width": 12},
    "untied": {"tied_embeddings": False},
    "rope-linear": {"rope_scaling": {"name": "linear", "factor": 4}},
    "rope-ntk": {"rope_scaling": {"name": "ntk", "factor": 4}},
    "rope-yarn": {"rope_scaling": {"name": "yarn", "factor": 4, "original_context": 16, "beta_fast": 2}},
    "rope-llama3": {"rope_scaling": {"name": "llama3", "factor": 4, "original_context": 16}},
    "positions-none": {"positions": "none"},
    "positions-learned": {"positions": "learned"},
    "positions-sinusoidal": {"positions": "sinusoidal"},
    "positions-alibi": {"positions": "alibi"},
    "qk_norm": {"attention": {"qk_norm": True}},
    "qkv_bias": {"attention": {"qkv_bias": True}},
    "output_bias": {"attention": {"output_bias": True}},
    "attention-scale": {"attention": {"scale": 0.7}},
    "window": {"attention": {"window": 3}},
    "window-pattern": {"attention": {"window": 2, "pattern": ["local", "global"]}},
    "softcap": {"attention": {"softcap": 0.5}},
    "sinks": {"attention": {"sinks": True}},
    "softcap-sinks-window-alibi": {
        "positions": "alibi",
        "attention": {"softcap": 0.5, "sinks": True, "window": 4, "pattern": ["global", "local"]},
    },
    "layer-norm": {"norm": {"name": "layer"}},
    "layer-norm-bias": {"norm": {"name": "layer", "bias": True}},
    "norm-post": {"norm": {"place": "post"}},
    "norm-sandwich": {"norm": {"place": "sandwich"}},
    "geglu": {"feed_forward": {"activation": "geglu"}},
    "gelu": {"feed_forward": {"activation": "gelu"}},
    "gelu_tanh": {"feed_forward": {"activation": "gelu_tanh"}},
    "relu2": {"feed_forward": {"activation": "relu2"}},
    "feed-forward-bias": {"feed_forward": {"bias": True}},
    "scale-embedding": {"scale": {"embedding": 5.0}},
    "scale-residual": {"scale": {"residual": 0.4}},
    "scale-logits": {"scale": {"logits": 0.5}},
    "logit-softcap": {"scale": {"logit_softcap": 2.0}},
    "gpt": GPT,
    "latent": LATENT,
    "latent-queries": LATENT_QUERIES,
    "latent-window-softcap-sinks": {**LATENT, "attention": {"window": 3, "softcap": 0.5, "sinks": True}},
    "latent-yarn-scale": {
        **LATENT,
        "rope_scaling": {"name": "yarn", "factor": 4, "original_context": 16, "attention_factor": 1.0},
        "attention": {"scale": 0.4},
    },
    "experts": {"experts": FEW},
    "experts-top1": {"experts": {**FEW, "top": 1, "normalise": False}},
    "experts-sigmoid": {"experts": {**FEW, "router": "sigmoid"}},
    "experts-as-scored": {"experts": {**FEW, "normalise": False, "scale": 1.5}},
    "experts-shared": {"experts": {**FEW, "shared": 2}},
    "experts-fine-grained": {"experts": {"count": 16, "top": 6, "ffn_width": 8}},
    "experts-groups": {"experts": {**GROUPED, "balance": "none"}},
    "experts-bias": {"experts": GROUPED},
    "experts-first-dense": {"experts": {**FEW, "first_dense": 1}},
    "experts-no-gate": {"experts": FEW, "feed_forward": {"activation": "relu2"}},
    "deepseek": {**LATENT_QUERIES, "experts": {**GROUPED, "shared": 1, "first_dense": 1}},
}
each_switch = pytest.mark.parametrize("switch", SWITCHES)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Products so small are slower on two threads, and far slower where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@each_switch
def test_it_changes_what_is_computed_and_nothing_of_its_shape(switch: str) -> None:
    plain, switched = make({}), make(SWITCHES[switch])
    shared = plain.state_dict()
    wanted = switched.state_dict()
    switched.load_state_dict(
        {n: v for n, v in shared.items() if n in wanted and wanted[n].shape == v.shape}, strict=False
    )
    tokens = random_tokens(2, 11)
    before, after = (logits_of(model, tokens, *one_document_each(tokens)) for model in (plain, switched))
    assert after.shape == (2, 11, VOCAB)
    assert torch.isfinite(after).all()
    assert not torch.allclose(before, after, atol=1e-4)


@each_switch
def test_no_output_depends_on_a_later_token(switch: str) -> None:
    model, tokens = make(SWITCHES[switch]), random_tokens(2, 16)
    before = logits_of(model, tokens, *one_document_each(tokens))
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % VOCAB
    after = logits_of(model, changed, *one_document_each(tokens))
    assert torch.allclose(before[:, :9], after[:, :9], atol=1e-6)
    assert not torch.allclose(before[:, 9], after[:, 9], atol=1e-3)


@each_switch
def test_a_packed_row_equals_its_documents_apart(switch: str) -> None:
    model = make(SWITCHES[switch])
    tokens, positions, documents = packed_row()
    together = logits_of(model, tokens, positions, documents)
    assert torch.isfinite(together).all()
    for number in range(3):
        alone = tokens[documents == number][None]
        apart = logits_of(model, alone, *one_document_each(alone))
        assert torch.allclose(together[documents == number], apart[0], atol=1e-5)


@each_switch
def test_cached_equals_uncached(switch: str) -> None:
    model, tokens = make(SWITCHES[switch]), random_tokens(2, 14)
    whole = logits_of(model, tokens, *one_document_each(tokens))
    done = [0, 0]
    with torch.inference_mode():
        cache = KVCache(model.config, 8, torch.float32, torch.device("cpu"), 4)
        for counts in [(6, 3), *[(1, 1)] * 8]:  # the prompts, then a token at a time
            spans = [Span(range(4 * row, 4 * row + 4), done[row], counts[row]) for row in range(2)]
            row = torch.cat([tokens[at, span.start : span.length] for at, span in enumerate(spans)])[None]
            positions = torch.cat([torch.arange(span.start, span.length) for span in spans])[None]
            logits = model.logits(model(row, positions, cache.attend(spans)))[0].split(counts)
            for at, span in enumerate(spans):
                assert torch.allclose(logits[at], whole[at, span.start : span.length], atol=1e-5)
                done[at] = span.length


@each_switch
def test_the_gradient_reaches_every_parameter(switch: str) -> None:
    model = make({**SWITCHES[switch], "context": 48})
    tokens = random_tokens(4, 48)
    logits = model.logits(model(tokens, *one_document_each_attended(tokens)))
    functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if name.endswith("k_proj.bias") and model.config.positions != "rope":
            continue  # adds the same to all scores of a query, which a softmax does not see
        assert parameter.grad.abs().sum() > 0, name


@each_switch
def test_it_overfits_one_batch(switch: str) -> None:
    model, tokens = make(SWITCHES[switch]), random_tokens(2, 12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(70):
        logits = model.logits(model(tokens, *one_document_each_attended(tokens)))
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Logits within ±2 leave a loss of ln(1 + 60 e^-4) = 0.74 at best.
    assert loss.item() < (0.9 if switch == "logit-softcap" else 0.3)
