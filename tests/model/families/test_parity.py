"""The same logits as transformers for every family, of checkpoints that either side wrote."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmctl.config.errors import InputError
from llmctl.config.model import ModelConfig
from llmctl.config.presets import PRESETS
from llmctl.model.attention import packed
from llmctl.model.families import OWN, family_for
from llmctl.model.families.family import alike, canonical
from llmctl.model.huggingface import load, open_weights, save
from llmctl.model.transformer import Transformer

transformers = pytest.importorskip("transformers")

VOCAB = 101
TOKENS = torch.randint(0, VOCAB, (2, 40), generator=torch.Generator().manual_seed(0))
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "rope_theta": 500.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 500.0}
DECODER = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
DEEPSEEK = {
    **DECODER,
    "num_key_value_heads": 6,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
GPT2 = {"vocab_size": VOCAB, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 64}
THEIRS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "Llama", DECODER),
    ("llama tied", "Llama", {**DECODER, "tie_word_embeddings": True}),
    ("llama biases", "Llama", {**DECODER, "attention_bias": True, "mlp_bias": True}),
    ("llama head_dim", "Llama", {**DECODER, "head_dim": 12}),
    ("llama3", "Llama", {**DECODER, "rope_parameters": LLAMA3}),
    (
        "llama linear",
        "Llama",
        {**DECODER, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ),
    ("llama yarn", "Llama", {**DECODER, "rope_parameters": YARN}),
    ("mistral", "Mistral", {**DECODER, "sliding_window": 7}),
    ("mistral without window", "Mistral", {**DECODER, "sliding_window": None, "head_dim": 10}),
    ("qwen2", "Qwen2", DECODER),
    ("qwen2 windows", "Qwen2", {**DECODER, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ("qwen3", "Qwen3", {**DECODER, "head_dim": 16}),
    ("qwen3 yarn", "Qwen3", {**DECODER, "head_dim": 16, "rope_parameters": {**YARN, "attention_factor": 1.1}}),
    ("gpt2", "GPT2", {**GPT2, "tie_word_embeddings": True}),
    ("gpt2 apart", "GPT2", {**GPT2, "tie_word_embeddings": False, "n_inner": 100, "activation_function": "gelu"}),
    ("mixtral", "Mixtral", {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6}),
    (
        "qwen3 moe",
        "Qwen3Moe",
        {
            **DECODER,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "mlp_only_layers": [0],
        },
    ),
    ("deepseek v3", "DeepseekV3", DEEPSEEK),
    (
        "deepseek v3 yarn",
        "DeepseekV3",
        {**DEEPSEEK, "q_lora_rank": None, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
]
IDS = [name for name, _, _ in THEIRS]


def reference(name: str, values: dict[str, Any]) -> Any:
    """A model of transformers with random weights, those included that begin as zeros or ones."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**values)
    model = getattr(transformers, FAMILIES_BY_NAME[name])(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn_like(buffer) * 0.05)
    return model


FAMILIES_BY_NAME = {
    "Llama": "LlamaForCausalLM",
    "Mistral": "MistralForCausalLM",
    "Qwen2": "Qwen2ForCausalLM",
    "Qwen3": "Qwen3ForCausalLM",
    "GPT2": "GPT2LMHeadModel",
    "Mixtral": "MixtralForCausalLM",
    "Qwen3Moe": "Qwen3MoeForCausalLM",
    "DeepseekV3": "DeepseekV3ForCausalLM",
}


def logits_of(model: Transformer) -> torch.Tensor:
    rows, length = TOKENS.shape
    with torch.no_grad():
        places = torch.arange(length).expand(rows, length)
        return model.logits(model(TOKENS, places, packed(torch.zeros(rows, length))))


def theirs_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(TOKENS).logits
    return logits


@pytest.mark.parametrize(("name", "values"), [(name, values) for _, name, values in THEIRS], ids=IDS)
def test_what_transformers_wrote_gives_its_logits_and_goes_back_unchanged(
    tmp_path: Path, name: str, values: dict[str, Any]
) -> None:
    model = reference(name, values)
    expected = theirs_of(model)
    assert expected.std() > 0.1
    model.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    ours = load(tmp_path / "theirs")
    assert (logits_of(ours) - expected).abs().max().item() < 1e-4

    family = save(ours, tmp_path / "ours", None)
    plain = name == "Mistral" and values["sliding_window"] is None
    assert family.model_type == ("llama" if plain else model.config.model_type)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert torch.equal(theirs_of(again), expected)
    assert again.num_parameters() == model.num_parameters()


SMALL = {"width": 32, "layers": 3, "heads": 4, "kv_heads": 2, "ffn_width": 48, "context": 64, "head_width": 8}


def shrunk(preset: str) -> ModelConfig:
    """The preset's blocks at a width that a test can afford."""
    shape = {**PRESETS[preset], **SMALL, "name": "custom"}
    if PRESETS[preset]["heads"] == PRESETS[preset]["kv_heads"]:
        shape["kv_heads"] = SMALL["heads"]
    if attention := shape.get("attention"):
        shape["attention"] = {**attention, **({"window": 9} if "window" in attention else {})}
    if "latent" in shape:
        shape["latent"] = {"query_rank": 12, "kv_rank": 8, "rope_width": 4, "value_width": 6}
    if experts := shape.get("experts"):
        groups = {"groups": 2, "groups_kept": 1} if "groups" in experts else {}
        shape["experts"] = {**experts, "count": 6, "top": 2, "ffn_width": 16, **groups}
        shape["experts"]["first_dense"] = min(1, experts.get("first_dense", 0))
    return ModelConfig.model_validate(shape)


@pytest.mark.parametrize(
    "preset",
    "tiny gpt2 llama3.1-8b mistral-7b qwen2-7b qwen3-0.6b mixtral-8x7b qwen3-30b-a3b deepseek-v3".split(),
)
def test_transformers_opens_what_we_train_from_a_preset(tmp_path: Path, preset: str) -> None:
    model = Transformer(shrunk(preset), VOCAB)
    model.init_weights(0)
    family = save(model, tmp_path, None)
    assert family is not OWN
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert theirs.config.model_type == family.model_type
    assert (theirs_of(theirs) - logits_of(model)).abs().max().item() < 1e-4
    back = load(tmp_path)
    assert alike(back.config, canonical(model.config))
    assert torch.equal(logits_of(back), logits_of(model))


def test_every_preset_is_expressed_by_the_family_that_published_it() -> None:
    of = {name: family_for(ModelConfig(name=name))[0].model_type for name in PRESETS}
    assert OWN.model_type not in of.values()
    assert {of[name] for name in of if name.startswith("gpt")} == {"gpt2"}
    assert {of[name] for name in of if name.startswith(("llama", "smollm"))} == {"llama"}
    assert (of["mistral-7b"], of["mixtral-8x7b"]) == ("mistral", "mixtral")
    assert {of[name] for name in of if name.startswith("qwen2")} == {"qwen2"}
    assert {of[name] for name in of if name.startswith("qwen3")} == {"qwen3", "qwen3_moe"}
    assert of["deepseek-v3"] == "deepseek_v3"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"attention": {"qkv_bias": True}}, "qwen2"),
        ({"attention": {"qk_norm": True}}, "qwen3"),
        ({"attention": {"window": 5, "qk_norm": True, "pattern": ["local", "global"]}}, "qwen3"),
        ({"attention": {"window": 5, "pattern": ["local", "global"]}}, "llmctl"),
        ({"attention": {"window": 5}}, "mistral"),
        ({"attention": {"scale": 0.25}}, "llama"),  # what it would be anyway
        ({"attention": {"scale": 0.3}}, "llmctl"),
        ({"width": 60, "heads": 8, "kv_heads": 4, "head_width": 8}, "mistral"),  # 60 is no multiple of 8
        ({"rope_scaling": {"name": "ntk", "factor": 3.0}}, "llama"),  # a higher base
        ({"rope_scaling": {"name": "yarn", "factor": 3.0, "original_context": 32}}, "llama"),
        ({"positions": "alibi"}, "llmctl"),
        ({"norm": {"place": "sandwich"}}, "llmctl"),
        ({"experts": {"count": 4, "top": 2, "ffn_width": 16}}, "mixtral"),
        ({"experts": {"count": 4, "top": 2, "ffn_width": 16, "balance": "bias"}}, "llmctl"),
        ({"experts": {"count": 4, "top": 2, "ffn_width": 16, "balance_rate": 0.1, "z_loss": 0.1}}, "mixtral"),
        ({"mtp": {"depth": 2}}, "llama"),  # which serves training alone
        ({"mtp": {"depth": 2}, "positions": "alibi"}, "llmctl"),
    ],
)
def test_the_first_family_that_expresses_a_shape_is_taken(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    model = Transformer(ModelConfig.model_validate({"name": "nano", **changes}), VOCAB)
    model.init_weights(0)
    assert save(model, tmp_path, None).model_type == expected
    assert (logits_of(load(tmp_path)) - logits_of(model)).abs().max().item() < 1e-6
    if expected != "llmctl":
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        assert (theirs_of(theirs) - logits_of(model)).abs().max().item() < 1e-4


def test_modules_that_predict_further_tokens_are_left_out_and_said(tmp_path: Path) -> None:
    reference("DeepseekV3", DEEPSEEK).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "model.layers.3.eh_proj.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    assert open_weights(tmp_path).left_out == ["model.layers.3.eh_proj.weight"]


def test_a_gpt2_without_the_prefix_of_its_names_opens(tmp_path: Path) -> None:
    model = reference("GPT2", GPT2)
    model.save_pretrained(tmp_path)
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(tmp_path / "model.safetensors").items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
    save_file(tensors, tmp_path / "model.safetensors")
    assert (logits_of(load(tmp_path)) - theirs_of(model)).abs().max().item() < 1e-4


@pytest.mark.parametrize(
    ("name", "values", "change", "says"),
    [
        ("DeepseekV3", DEEPSEEK, {"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05"),
        ("DeepseekV3", DEEPSEEK, {"topk_method": "greedy"}, "topk_method"),
        ("DeepseekV3", DEEPSEEK, {"rope_interleave": False}, "rope_interleave"),
        ("Qwen3Moe", {**DECODER, "num_experts": 4}, {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("Qwen3Moe", {**DECODER, "num_experts": 4}, {"mlp_only_layers": [1]}, "mlp_only_layers must be the first"),
        ("Qwen2", DECODER, {"head_dim": 10}, "head_dim"),
        ("Mistral", DECODER, {"layer_types": ["full_attention"] * 3}, "layer_types"),
        ("GPT2", GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("GPT2", GPT2, {"activation_function": "relu"}, "activation_function"),
        ("Llama", DECODER, {"rope_parameters": {**LLAMA3, "low_freq_factor": 9.0}}, "low_frequency_factor"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_its_field(
    tmp_path: Path, name: str, values: dict[str, Any], change: dict[str, Any], says: str
) -> None:
    getattr(transformers, f"{name}Config")(**values).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = {**json.loads(path.read_text()), "architectures": None, **change}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=says):
        load(tmp_path)
