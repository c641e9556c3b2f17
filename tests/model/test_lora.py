"""Adapters: the base's output at the start, merged as unmerged, and PEFT's files both ways."""

import copy
import json

import numpy as np
import pytest
import torch

from llmctl.config.errors import InputError, IntegrityError, UsageError
from llmctl.config.lora import LoraConfig
from llmctl.config.model import ModelConfig
from llmctl.config.optimizers import AdamWConfig
from llmctl.model import adapters, huggingface
from llmctl.model.kernels import attend_through
from llmctl.model.lora import adapted, attach, difference, factors_of
from llmctl.model.transformer import Transformer
from llmctl.train.optimizers import build_optimizer

SHAPE = {"name": "nano", "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48, "context": 32}
VOCAB = 64
VARIANTS = [
    {},
    {"rank": 3, "alpha": 5},
    {"rslora": True, "rank": 4},
    {"dora": True, "rank": 4},
    {"init": "pissa", "rank": 4, "alpha": 4},
    {"targets": ["q_proj", "down_proj"], "rank": 2},
]


def made(**fields):
    model = Transformer(ModelConfig.model_validate({**SHAPE, **fields}), VOCAB)
    model.init_weights(1)
    return model


def logits_of(model, seed=0):
    ids = torch.from_numpy(np.random.default_rng(seed).integers(0, VOCAB, (2, 9)))
    places = torch.arange(9).expand(2, -1)
    attend = attend_through("sdpa", torch.zeros(2, 9, dtype=torch.int32), one_each=True)
    return ids, model.logits(model(ids, places, attend))


def moved(model):
    """The adapters after some change of theirs."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, layer in adapted(model):
            for parameter in layer.parameters(recurse=False):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return factors_of(model)


def merged(base, factors):
    whole = copy.deepcopy(base)
    with torch.no_grad():
        for name, one in factors.items():
            weight = whole.get_submodule(name).weight
            weight.copy_(one.merged(weight))
    return whole


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_it_begins_as_the_base_and_merges_to_what_it_is(fields):
    base, config = made(), LoraConfig.model_validate(fields)
    model = copy.deepcopy(base)
    start = attach(model, config, seed=3)
    with torch.no_grad():
        wanted = logits_of(base)[1]
        torch.testing.assert_close(logits_of(model)[1], wanted, rtol=1e-5, atol=1e-5)
        factors = moved(model)
        if config.init == "pissa":
            factors = difference(factors, start)
            assert next(iter(factors.values())).a.shape[0] == 2 * config.rank
        adapted_logits = logits_of(model)[1]
        assert not torch.allclose(adapted_logits, wanted, atol=1e-2)
        torch.testing.assert_close(logits_of(merged(base, factors))[1], adapted_logits, rtol=1e-5, atol=1e-5)


def test_only_the_adapters_learn():
    model = made()
    attach(model, LoraConfig(rank=4, b_lr_ratio=16), seed=0)
    logits_of(model)[1].square().sum().backward()
    learned = {name for name, one in model.named_parameters() if one.requires_grad}
    assert {name.rpartition(".")[2] for name in learned} == {"lora_A", "lora_B"}
    assert len(learned) == 2 * 7 * 2
    assert all((one.grad is not None) == (name in learned) for name, one in model.named_parameters())
    groups = build_optimizer(model, AdamWConfig(lr=1e-3)).param_groups
    rates = {len(group["params"]): group["peak_lr"] for group in groups}
    assert sorted(group["peak_lr"] for group in groups) == pytest.approx([1e-3, 16e-3])
    assert rates.keys() == {14}
    shapes = [tuple(group["params"][0].shape) for group in groups]
    assert shapes[0][0] == 4  # A learns at the plain rate
    assert shapes[1][1] == 4


def test_the_direction_of_dora_has_no_gradient_of_its_length():
    model = made()
    attach(model, LoraConfig(rank=2, dora=True, targets=["o_proj"]), seed=0)
    moved(model)
    (_, layer), *_ = adapted(model)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    layer(x).sum().backward()
    with torch.no_grad():
        direction = layer.base.weight + layer.scale * layer.lora_B @ layer.lora_A
        norm = direction.norm(dim=1)
        wanted = (x @ direction.T).sum(0) / norm
        torch.testing.assert_close(layer.magnitude.grad, wanted)
        outer = layer.scale * (layer.magnitude / norm)[:, None] * (layer.lora_A @ x.sum(0))[None]
        torch.testing.assert_close(layer.lora_B.grad, outer)


def test_a_target_that_is_not_there_and_a_rank_that_is_too_large():
    with pytest.raises(UsageError, match="no matrix is called 'w_proj'") as caught:
        attach(made(), LoraConfig(targets=["q_proj", "w_proj"]), seed=0)
    assert "down_proj" in caught.value.hint
    with pytest.raises(UsageError, match=r"lora.rank \(17\) exceeds a side of layers.0.self_attn.k_proj, \(16, 32\)"):
        attach(made(), LoraConfig(rank=17), seed=0)
    ungated = made(feed_forward={"activation": "gelu"})
    attach(ungated, LoraConfig(rank=2), seed=0)  # which has no gate_proj, though the default names it


@pytest.fixture
def stored(tmp_path):
    base = made()
    huggingface.save(base, tmp_path / "base", None)
    return base, tmp_path


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_peft_reads_ours(stored, fields):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base, folder = stored
    model = copy.deepcopy(base)
    config = LoraConfig.model_validate(fields)
    start = attach(model, config, seed=3)
    factors = moved(model)
    factors = difference(factors, start) if config.init == "pissa" else factors
    adapters.write(folder / "adapter", factors, base.config, VOCAB, "base")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, folder / "adapter").eval()
    with torch.no_grad():
        ids, wanted = logits_of(model)
        torch.testing.assert_close(theirs(ids).logits, wanted, rtol=1e-5, atol=1e-5)
    ours = adapters.read(folder / "adapter", base.config, VOCAB)
    assert ours.keys() == factors.keys()
    for name, one in ours.items():
        torch.testing.assert_close(
            one.merged(base.get_submodule(name).weight), factors[name].merged(base.get_submodule(name).weight)
        )


@pytest.mark.parametrize(
    "fields",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"alpha_pattern": {"q_proj": 3}}, {"target_modules": "all-linear"}],
    ids=str,
)
def test_ours_reads_pefts(stored, fields):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base, folder = stored
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    given = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "up_proj"], "task_type": "CAUSAL_LM"}
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(**{**given, **fields})).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.05)
        theirs.save_pretrained(folder / "adapter")
        factors = adapters.read(folder / "adapter", base.config, VOCAB)
        whole = merged(base, factors)
        ids, ours = logits_of(whole)
        torch.testing.assert_close(ours, theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_broken_adapters_are_refused(tmp_path):
    base = made()
    factors = attach(copy.deepcopy(base), LoraConfig(rank=2), seed=0)
    folder = tmp_path / "a"
    adapters.write(folder, factors, base.config, VOCAB, "base")
    again = tmp_path / "b"
    adapters.write(again, factors, base.config, VOCAB, "base")
    for name in (adapters.CONFIG_FILE, adapters.WEIGHTS_FILE):
        assert (folder / name).read_bytes() == (again / name).read_bytes()
    wider = made(width=64)
    with pytest.raises(IntegrityError, match=r"has factors .* for a matrix"):
        adapters.read(folder, wider.config, VOCAB)
    with pytest.raises(InputError, match=r"no matrix model.layers.1"):
        adapters.read(folder, made(layers=1).config, VOCAB)
    described = json.loads((folder / adapters.CONFIG_FILE).read_text())
    for change, fault in (
        ({"peft_type": "IA3"}, "describes no LoRA adapter"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
    ):
        (again / adapters.CONFIG_FILE).write_text(json.dumps({**described, **change}))
        with pytest.raises(InputError, match=fault):
            adapters.read(again, base.config, VOCAB)
    (again / adapters.CONFIG_FILE).write_text("{")
    with pytest.raises(InputError, match="cannot read"):
        adapters.read(again, base.config, VOCAB)
    (folder / adapters.WEIGHTS_FILE).write_bytes(b"torn")
    with pytest.raises(IntegrityError, match="cannot read"):
        adapters.read(folder, base.config, VOCAB)
