"""A model through GGUF and back, and files whose metadata lie."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from llmctl.config.errors import InputError, IntegrityError, LlmctlError, UsageError
from llmctl.config.model import ModelConfig
from llmctl.model.families.family import alike, canonical
from llmctl.model.formats.gguf_writer import write_gguf
from llmctl.model.gguf import open_gguf, write
from llmctl.model.transformer import Transformer
from llmctl.model.weights import HeldWeights

VOCAB = 101
NANO = {"name": "nano", "ffn_width": 96}
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tied_embeddings": False, "head_width": 12}),
    ("llama", {"attention": {"qkv_bias": True, "output_bias": True}, "feed_forward": {"bias": True}}),
    ("llama", {"rope_scaling": {"name": "llama3", "factor": 8, "original_context": 8192}, "rope_base": 5e5}),
    ("llama", {"rope_scaling": {"name": "linear", "factor": 4}}),
    ("llama", {"rope_scaling": {"name": "yarn", "factor": 4, "original_context": 128}}),
    ("llama", {"experts": {"count": 4, "top": 2, "ffn_width": 32}}),
    ("qwen2", {"attention": {"qkv_bias": True}}),
    ("qwen3", {"attention": {"qk_norm": True}, "head_width": 32}),
    ("qwen3moe", {"attention": {"qk_norm": True}, "experts": {"count": 4, "top": 2, "ffn_width": 32}}),
    (
        "gpt2",
        {
            "kv_heads": 4,
            "positions": "learned",
            "attention": {"qkv_bias": True, "output_bias": True},
            "norm": {"name": "layer", "bias": True},
            "feed_forward": {"activation": "gelu_tanh", "bias": True},
        },
    ),
]


def make(**changes: object) -> Transformer:
    model = Transformer(ModelConfig.model_validate({**NANO, **changes}), VOCAB)
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


@pytest.mark.parametrize(("architecture", "changes"), SHAPES)
def test_a_model_comes_back_from_gguf_as_it_was(tmp_path: Path, architecture: str, changes: dict[str, Any]) -> None:
    model = make(**changes)
    path = tmp_path / "x.gguf"
    assert write(path, model.config, VOCAB, HeldWeights(model.state_dict()), {}, wanted="F32") == architecture
    opened = open_gguf(path)
    assert opened.vocab_size == VOCAB
    assert alike(canonical(opened.config), canonical(model.config), within=1e-6)
    state = model.state_dict()
    assert opened.weights.shapes.keys() == state.keys()
    assert all(torch.equal(opened.weights.tensor(name), value) for name, value in state.items())


def test_queries_of_a_llama_are_laid_out_as_llama_cpp_does(tmp_path: Path) -> None:
    """Its converter: reshape(heads, 2, width / 2, …).swapaxes(1, 2)."""
    model = make()
    write(tmp_path / "x.gguf", model.config, VOCAB, HeldWeights(model.state_dict()), {}, wanted="F32")
    ours = model.layers[0].self_attn.q_proj.weight.detach().numpy()  # type: ignore[union-attr]
    theirs = ours.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64)
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert np.array_equal(stored["blk.0.attn_q.weight"], theirs)


@pytest.mark.parametrize(
    "changes",
    [{"attention": {"window": 8}}, {"attention": {"sinks": True}}, {"positions": "alibi"}, {"norm": {"place": "post"}}],
)
def test_what_llama_cpp_has_no_architecture_for_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = make(**changes)
    with pytest.raises(UsageError, match="no architecture of llama.cpp"):
        write(tmp_path / "x.gguf", model.config, VOCAB, HeldWeights(model.state_dict()), {}, wanted="F16")
    assert not (tmp_path / "x.gguf").exists()


METADATA: dict[str, Any] = {
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 16,
    "llama.attention.head_count": 2,
}
TENSORS: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (11, 8),
    "output_norm.weight": (8,),
    "blk.0.attn_norm.weight": (8,),
    "blk.0.ffn_norm.weight": (8,),
    **{f"blk.0.attn_{part}.weight": (8, 8) for part in ("q", "k", "v", "output")},
    "blk.0.ffn_gate.weight": (16, 8),
    "blk.0.ffn_up.weight": (16, 8),
    "blk.0.ffn_down.weight": (8, 16),
}


def file_of(
    path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[int, ...]], architecture: str = "llama"
) -> None:
    write_gguf(path, architecture, metadata, tensors, lambda name: torch.ones(tensors[name]), wanted="F32")


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


FAULTS: list[tuple[dict[str, Any], dict[str, tuple[int, ...]], type[LlmctlError], str]] = [
    (without(METADATA, "llama.block_count"), TENSORS, InputError, "block_count: Field required"),
    ({**METADATA, "llama.block_count": "1"}, TENSORS, InputError, "block_count: Input should be a valid integer"),
    ({**METADATA, "llama.attention.head_count": 0}, TENSORS, InputError, "attention.head_count"),
    ({**METADATA, "llama.attention.head_count_kv": [1, 1]}, TENSORS, InputError, "attention.head_count_kv"),
    ({**METADATA, "llama.attention.head_count": 3}, TENSORS, IntegrityError, "attn_q.weight has shape"),
    ({**METADATA, "llama.attention.sliding_window": 5}, TENSORS, InputError, "attention.sliding_window"),
    ({**METADATA, "llama.rope.scaling.type": "longrope"}, TENSORS, InputError, "rope.scaling.type is 'longrope'"),
    ({**METADATA, "llama.rope.dimension_count": 2}, TENSORS, InputError, "rotary part 2"),
    ({**METADATA, "llama.block_count": 2}, TENSORS, IntegrityError, "lacks the tensor blk.1"),
    (METADATA, without(TENSORS, "token_embd.weight"), IntegrityError, "lacks the matrix token_embd.weight"),
    (METADATA, without(TENSORS, "blk.0.attn_q.weight"), IntegrityError, "lacks the tensor blk.0.attn_q.weight"),
    (METADATA, {**TENSORS, "blk.0.extra.weight": (1,)}, IntegrityError, "holds the tensor blk.0.extra.weight"),
    (METADATA, {**TENSORS, "blk.0.ffn_up.weight": (8, 16)}, IntegrityError, r"blk.0.ffn_up.weight has shape \[8, 16\]"),
    (METADATA, {**TENSORS, "rope_freqs.weight": (3,)}, InputError, "rope_freqs.weight has 3 factors for heads of 4"),
]


@pytest.mark.parametrize(("metadata", "tensors", "error", "says"), FAULTS, ids=[says for *_, says in FAULTS])
def test_a_file_that_contradicts_itself_is_refused_by_its_field(
    tmp_path: Path, metadata: dict[str, Any], tensors: dict[str, Any], error: type[LlmctlError], says: str
) -> None:
    file_of(tmp_path / "x.gguf", metadata, tensors)
    with pytest.raises(error, match=says):
        open_gguf(tmp_path / "x.gguf")


def test_a_sound_file_opens_and_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    file_of(tmp_path / "x.gguf", METADATA, TENSORS)
    assert open_gguf(tmp_path / "x.gguf").config.kv_heads == 2
    file_of(tmp_path / "y.gguf", METADATA, TENSORS, "rwkv7")
    with pytest.raises(InputError, match="general.architecture is 'rwkv7', which is not known here") as caught:
        open_gguf(tmp_path / "y.gguf")
    assert caught.value.hint == "known: qwen2, llama, qwen3, qwen3moe, gpt2"


def test_weights_that_are_not_numbers_are_found_when_they_are_read(tmp_path: Path) -> None:
    write_gguf(
        tmp_path / "x.gguf",
        "llama",
        METADATA,
        TENSORS,
        lambda name: torch.full(TENSORS[name], float("nan") if name == "blk.0.attn_v.weight" else 1.0),
        wanted="F16",
    )
    opened = open_gguf(tmp_path / "x.gguf")
    opened.weights.tensor("layers.0.self_attn.q_proj.weight")
    with pytest.raises(IntegrityError, match=r"x.gguf: blk.0.attn_v.weight holds NaN"):
        opened.weights.tensor("layers.0.self_attn.v_proj.weight")
