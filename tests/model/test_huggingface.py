"""A checkpoint directory: what transformers makes of ours, and what we make of damaged ones."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmctl.config.errors import InputError, IntegrityError, LlmctlError
from llmctl.config.model import ModelConfig
from llmctl.model.attention import packed
from llmctl.model.families import OWN
from llmctl.model.huggingface import load, save
from llmctl.model.transformer import Transformer

VOCAB = 101
TOKENS = torch.randint(0, VOCAB, (2, 33), generator=torch.Generator().manual_seed(0))


def make(**changes: object) -> Transformer:
    model = Transformer(ModelConfig.model_validate({"name": "nano", **changes}), VOCAB)
    model.init_weights(0)
    return model


def logits_of(model: Transformer) -> torch.Tensor:
    rows, length = TOKENS.shape
    with torch.no_grad():
        return model.logits(model(TOKENS, torch.arange(length).expand(rows, length), packed(torch.zeros(rows, length))))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(make(), tmp_path / "model", None)
    return tmp_path / "model"


@pytest.mark.parametrize(
    "changes",
    [{}, {"tied_embeddings": False}, {"kv_heads": 1}, {"kv_heads": 4, "rope_base": 500000.0, "norm_eps": 1e-6}],
)
def test_transformers_opens_it_with_the_same_logits(tmp_path: Path, changes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    model = make(**changes)
    save(model, tmp_path, None)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        theirs = reference(TOKENS).logits
    assert (logits_of(model) - theirs).abs().max().item() < 1e-4
    assert reference.num_parameters() == model.parameters_count()


def test_a_directory_that_transformers_wrote_opens(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        intermediate_size=80,
        vocab_size=VOCAB,
    )
    reference = transformers.LlamaForCausalLM(config).eval()
    reference.save_pretrained(tmp_path)
    with torch.no_grad():
        theirs = reference(TOKENS).logits
    assert (logits_of(load(tmp_path)) - theirs).abs().max().item() < 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_exact(tmp_path: Path, tied: bool) -> None:
    model = make(tied_embeddings=tied)
    save(model, tmp_path, None)
    back = load(tmp_path)
    assert torch.equal(logits_of(back), logits_of(model))
    assert back.config.model_copy(update={"name": "nano"}) == model.config
    assert back.vocab_size == VOCAB
    assert all(parameter.requires_grad for parameter in back.parameters())


def test_loading_converts_the_dtype_and_saving_keeps_it(tmp_path: Path) -> None:
    save(make().to(torch.bfloat16), tmp_path, None)
    assert load(tmp_path).dtype == torch.bfloat16
    assert load(tmp_path, dtype=torch.float32).dtype == torch.float32
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(make(), tmp_path / name, None)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["config.json", "generation_config.json", "model.safetensors"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    save(load(tmp_path / "a"), tmp_path / "c", None)
    assert (tmp_path / "c" / "model.safetensors").read_bytes() == (tmp_path / "a" / "model.safetensors").read_bytes()


def test_loaded_weights_train_without_touching_the_file(saved: Path) -> None:
    before = (saved / "model.safetensors").read_bytes()
    model = load(saved)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert (saved / "model.safetensors").read_bytes() == before


def weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """A fault made by editing the tensors."""

    def fault(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        edit(tensors)
        save_file(tensors, directory / "model.safetensors")

    return fault


def raw(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A fault made by editing the bytes."""

    def fault(directory: Path) -> None:
        path = directory / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return fault


def field(**changes: object) -> Callable[[Path], None]:
    """A fault made by editing config.json; None removes a key."""

    def fault(directory: Path) -> None:
        path = directory / "config.json"
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return fault


NORM = "model.norm.weight"
FAULTS: list[tuple[Callable[[Path], object], type[LlmctlError], str]] = [
    (raw(lambda b: b[:100]), IntegrityError, "header"),
    (raw(lambda b: b[:3]), IntegrityError, "header"),
    (raw(lambda _: b""), IntegrityError, "header"),
    (raw(lambda b: b[:-1]), IntegrityError, "ends at byte"),
    (raw(lambda b: b + b"x"), IntegrityError, "last 1 bytes are of no tensor"),
    (raw(lambda b: struct.pack("<Q", 1 << 62) + b[8:]), IntegrityError, "header's length"),
    (raw(lambda b: struct.pack("<Q", len(b) * 2) + b[8:]), IntegrityError, "header"),
    (raw(lambda b: b[:8] + b"{" * (len(b) - 8)), IntegrityError, "header"),
    (weights(lambda t: t.pop(NORM)), IntegrityError, NORM),
    (weights(lambda t: t.update({NORM: torch.ones(63)})), IntegrityError, NORM + r" has shape \[63\]"),
    (
        weights(lambda t: t.update({NORM: torch.ones(64, dtype=torch.int32)})),
        InputError,
        NORM + " is of a type that is no weight's",
    ),
    (weights(lambda t: t[NORM].fill_(float("nan"))), IntegrityError, NORM + " holds NaN"),
    (weights(lambda t: t[NORM].fill_(float("inf"))), IntegrityError, NORM + " holds NaN or infinity"),
    (weights(lambda t: t.update({"model.extra": torch.ones(1)})), IntegrityError, "model.extra"),
    (weights(lambda t: t.update({"lm_head.weight": torch.ones(VOCAB, 64)})), IntegrityError, "lm_head.weight differs"),
    (lambda d: (d / "model.safetensors").unlink(), InputError, "model.safetensors does not exist"),
    (lambda d: (d / "config.json").unlink(), InputError, "config.json does not exist"),
    (lambda d: (d / "config.json").write_text("{"), InputError, "not JSON"),
    (lambda d: (d / "config.json").write_bytes(b"\xff\xfe{}"), InputError, "not JSON"),
    (lambda d: (d / "config.json").write_text("[]"), InputError, "no JSON object"),
    (lambda d: (d / "config.json").write_text("[" * 100_000), InputError, "not JSON"),
    (field(architectures=["OPTForCausalLM"]), InputError, "OPTForCausalLM.*is not known here"),
    (field(architectures=None, model_type=None), InputError, "architectures is none, and model_type None"),
    (field(hidden_size=None), InputError, "hidden_size"),
    (field(hidden_size="64"), InputError, "hidden_size"),
    (field(hidden_size=10**9), InputError, "width"),
    (field(vocab_size=10**12), InputError, "vocab_size"),
    (field(num_hidden_layers=3), IntegrityError, r"lacks the tensor model.layers.2.* and 8 more"),
    (field(num_hidden_layers=1), IntegrityError, r"holds the tensor model.layers.1"),
    (field(head_dim=99), InputError, "head_dim"),
    (field(hidden_act="gelu"), InputError, "hidden_act"),
    (field(attention_bias=True), IntegrityError, "lacks the tensor model.layers.0.self_attn.k_proj.bias"),
    (field(rope_parameters={"rope_type": "longrope"}), InputError, "rope_parameters.rope_type"),
    (field(rope_parameters={"rope_type": "yarn"}), InputError, "yarn has no factor"),
    (field(quantization_config={"quant_method": "fp8"}), InputError, "quantization_config"),
    (field(partial_rotary_factor=0.5), InputError, "partial_rotary_factor"),
    (field(rope_scaling={"type": "dynamic"}), InputError, "rope_scaling.type"),
]


@pytest.mark.parametrize(("fault", "error", "says"), FAULTS, ids=[says for _, _, says in FAULTS])
def test_damage_is_named(saved: Path, fault: Callable[[Path], object], error: type[LlmctlError], says: str) -> None:
    fault(saved)
    with pytest.raises(error, match=says):
        load(saved)


class Canary:
    """Unpickling this makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_no_code_of_the_directory_runs(saved: Path, tmp_path: Path) -> None:
    field(auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})(saved)
    (saved / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'canary')!r})\n")
    load(saved)
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    load(saved)
    (saved / "model.safetensors").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(InputError, match=r"model.safetensors is a pickle"):
        load(saved)
    assert not (tmp_path / "canary").exists()


def test_a_shape_that_no_family_expresses_is_kept_in_our_own_layout(tmp_path: Path) -> None:
    model = make(attention={"sinks": True}, feed_forward={"activation": "relu2"})
    assert save(model, tmp_path, None) is OWN
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llmctl"
    back = load(tmp_path)
    assert back.config.model_copy(update={"name": "nano"}) == model.config
    assert torch.equal(logits_of(back), logits_of(model))
