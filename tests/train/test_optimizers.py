import math
import sys

import pytest
import torch
from synthetic_run import MODEL, VOCAB, curve, make_job, train
from torch import nn

from llmctl.config.errors import ConfigError, UsageError
from llmctl.config.load import build, parse_overrides
from llmctl.config.model import ModelConfig
from llmctl.config.optimizers import (
    AdafactorConfig,
    Adam8bitConfig,
    AdamWConfig,
    LionConfig,
    MuonConfig,
    SophiaConfig,
)
from llmctl.config.train import PretrainConfig
from llmctl.model.transformer import Transformer
from llmctl.train.muon import newton_schulz
from llmctl.train.optimizers import build_optimizer, described, muon_groups, parameter_groups, set_rate


def tiny():
    model = Transformer(ModelConfig.model_validate(MODEL), VOCAB)
    model.init_weights(0)
    return model


class OneMatrix(nn.Module):
    """A hidden matrix and a bias, in fp64 so that formulas can be compared to many digits."""

    def __init__(self, shape=(6, 4)):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.inner = nn.Linear(shape[1], shape[0], dtype=torch.float64)
        with torch.no_grad():
            self.inner.weight.copy_(torch.randn(shape, generator=generator, dtype=torch.float64))
            self.inner.bias.copy_(torch.randn(shape[0], generator=generator, dtype=torch.float64))

    def gradients(self, step):
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def follow(config, steps=5, dtype=torch.float64):
    """Every parameter after each of some steps with made-up gradients, the rate halved in the last."""
    model = OneMatrix()
    optimizer = build_optimizer(model, config, dtype)
    path = []
    for step in range(steps):
        model.gradients(step)
        set_rate(optimizer, 0.5 if step == steps - 1 else 1.0)
        optimizer.step()
        path.append([p.detach().clone() for p in model.parameters()])
    return path


def by_formula(config, update, decays):
    """The same path by a function (parameter, gradient, state, lr, decay, step) written down here."""
    model, states, path = OneMatrix(), [{}, {}], []
    for step in range(5):
        model.gradients(step)
        lr = config.lr * (0.5 if step == 4 else 1.0)
        values = []
        for p, state, decay in zip(model.parameters(), states, decays, strict=True):
            with torch.no_grad():
                p.copy_(update(p.detach().clone(), p.grad, state, lr, decay, step))
            values.append(p.detach().clone())
        path.append(values)
    return path


def assert_same_path(mine, expected, **tolerance):
    for a, b in zip(mine, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, **(tolerance or {"rtol": 1e-12, "atol": 1e-12}))


def test_matrices_decay_and_gains_do_not():
    model = tiny()
    decaying, plain = parameter_groups(model.named_parameters(), 0.1)
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decaying["params"]} == {2}
    assert {p.ndim for p in plain["params"]} == {1}
    named = [*decaying["params"], *plain["params"]]
    assert sum(p.numel() for p in named) == model.parameters_count()  # a tied matrix once


def test_frozen_parameters_are_left_out():
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(requires_grad=False)
    groups = parameter_groups(layer.named_parameters(), 0.1)
    assert [group["weight_decay"] for group in groups] == [0.0]


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    model = Transformer(ModelConfig.model_validate({**MODEL, "tied_embeddings": False}), VOCAB)
    hidden, tables, gains = muon_groups(model.named_parameters(), MuonConfig(lr=2e-3, rest_lr=1e-3))
    assert (hidden["orthogonal"], tables["orthogonal"], gains["orthogonal"]) == (True, False, False)
    assert len(hidden["params"]) == 2 * 7  # q, k, v, o, gate, up, down in each of two layers
    assert [p.shape[0] for p in tables["params"]] == [VOCAB, VOCAB]
    assert (hidden["lr"], tables["lr"], gains["lr"]) == (2e-3, 1e-3, 1e-3)
    assert (tables["weight_decay"], gains["weight_decay"]) == (0.1, 0.0)
    assert sum(p.numel() for g in (hidden, tables, gains) for p in g["params"]) == model.parameters_count()


def test_the_groups_are_stated():
    config = MuonConfig(lr=2e-3)
    assert described(build_optimizer(tiny(), config), config) == (
        "muon on 14 tensors, 4,608 parameters (lr 0.002, decay 0.1); "
        "adamw on 1 tensors, 1,024 parameters (lr 0.002, decay 0.1); "
        "adamw on 5 tensors, 80 parameters (lr 0.002, decay 0)"
    )


def test_one_step_is_adamw_closed_form():
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(2.0)
    optimizer = build_optimizer(layer, AdamWConfig(lr=0.1, weight_decay=0.5, betas=(0.9, 0.95), eps=1e-8))
    layer.weight.grad = torch.tensor([[3.0]])
    layer.bias.grad = torch.tensor([-3.0])
    optimizer.step()
    # The first step of Adam is lr x sign(gradient); the matrix decays by lr x weight_decay x value first.
    torch.testing.assert_close(layer.weight, torch.tensor([[2.0 - 0.1 * 0.5 * 2.0 - 0.1]]))
    torch.testing.assert_close(layer.bias, torch.tensor([2.1]))


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5), (3, 6, 9)])
def test_newton_schulz_brings_singular_values_near_one_and_keeps_the_vectors(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = newton_schulz(matrix, 5, torch.float64)
    assert made.shape == matrix.shape
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6
    assert values.max() < 1.25
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.mT @ made @ vt.mT  # diagonal: singular vectors are those of the matrix
    torch.testing.assert_close(inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1)), torch.zeros_like(inner))


def polynomial_of_singular_values(matrix, steps):
    """Newton-Schulz as it acts on singular values, through an SVD."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _ in range(steps):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    return u * s @ vt


def test_muon_follows_its_formula_and_adamw_the_bias():
    config = MuonConfig(lr=0.01, weight_decay=0.3)
    path = follow(config)

    def update(p, g, state, lr, decay, step):
        if p.ndim == 1:
            return adam(p, g, state, lr, decay, step)
        m = state["m"] = 0.95 * state.get("m", 0) + 0.05 * g
        direction = polynomial_of_singular_values(0.05 * g + 0.95 * m, 5)
        return p - lr * 0.3 * p - lr * 0.2 * math.sqrt(6) * direction

    def adam(p, g, state, lr, decay, step):
        m = state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
        v = state["v"] = 0.95 * state.get("v", 0) + 0.05 * g * g
        m, v = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.95 ** (step + 1))
        return p - lr * decay * p - lr * m / (v.sqrt() + 1e-8)

    # torch keeps Adam's step count in fp32, hence its bias correction is good to seven digits.
    assert_same_path(path, by_formula(config, update, (0.3, 0.0)), rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_is_torchs_muon_to_bfloat16():
    path = follow(MuonConfig(lr=0.01, weight_decay=0.3))
    model = OneMatrix()
    theirs = torch.optim.Muon(
        [model.inner.weight], lr=0.01, weight_decay=0.3, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(5):
        model.gradients(step)
        theirs.param_groups[0]["lr"] = 0.005 if step == 4 else 0.01
        theirs.step()
        # An update is 0.01 x 0.2 sqrt(6) at most; bfloat16 keeps two digits of it.
        assert (path[step][0] - model.inner.weight).abs().max() < 0.02 * 0.01 * 0.2 * math.sqrt(6) * (step + 1)


def test_lion_follows_its_formula():
    config = LionConfig(lr=0.01, weight_decay=0.3)

    def update(p, g, state, lr, decay, step):
        m = state.get("m", torch.zeros_like(g))
        state["m"] = 0.99 * m + 0.01 * g
        return p - lr * (torch.sign(0.9 * m + 0.1 * g) + decay * p)

    assert_same_path(follow(config), by_formula(config, update, (0.3, 0.0)))


def test_sophia_follows_its_formula():
    config = SophiaConfig(lr=0.01, weight_decay=0.3)
    model = OneMatrix()
    optimizer = build_optimizer(model, config)
    expected = [p.detach().clone() for p in model.parameters()]
    momentum = [torch.zeros_like(p) for p in expected]
    curvature = [torch.zeros_like(p) for p in expected]
    for step in range(6):
        if step % 2 == 0:
            model.gradients(50 + step)
            curvature = [0.99 * h + 0.01 * 64 * p.grad**2 for h, p in zip(curvature, model.parameters(), strict=True)]
            optimizer.estimate(64.0)
        model.gradients(step)
        momentum = [0.96 * m + 0.04 * p.grad for m, p in zip(momentum, model.parameters(), strict=True)]
        optimizer.step()
        for index, decay in enumerate((0.3, 0.0)):
            ratio = momentum[index] / torch.clamp(0.05 * curvature[index], min=1e-12)
            expected[index] = expected[index] * (1 - 0.01 * decay) - 0.01 * ratio.clamp(-1, 1)
            torch.testing.assert_close(list(model.parameters())[index], expected[index], rtol=1e-12, atol=1e-12)
    assert sum(int((abs(m / (0.05 * h)) > 1).sum()) for m, h in zip(momentum, curvature, strict=True)) > 0  # some clip


def test_adafactor_follows_its_formula():
    config = AdafactorConfig(lr=0.01, weight_decay=0.3)

    def update(p, g, state, lr, decay, step):
        beta = 1 - (step + 1) ** -0.8
        if p.ndim == 1:
            v = state["v"] = beta * state.get("v", 0) + (1 - beta) * g * g
        else:
            row = state["r"] = beta * state.get("r", 0) + (1 - beta) * (g * g).mean(1, keepdim=True)
            column = state["c"] = beta * state.get("c", 0) + (1 - beta) * (g * g).mean(0, keepdim=True)
            v = row * column / row.mean()
        u = g / v.sqrt()
        u = u / max(1.0, u.square().mean().sqrt().item())
        size = max(1e-3, p.square().mean().sqrt().item()) * min(lr, 1 / math.sqrt(step + 1))
        return p - lr * decay * p - size * u

    assert_same_path(follow(config), by_formula(config, update, (0.3, 0.0)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("muon", {"lr": 2e-2}),
        ("lion", {"lr": 4e-3}),
        ("sophia", {"lr": 3e-3, "interval": 3}),
        ("adafactor", {"lr": 3e-2}),
    ],
)
def test_each_optimizer_learns_and_is_bitwise_repeatable(tmp_path, name, fields):
    jobs = [make_job(tmp_path / end, steps=60, optimizer={"name": name, **fields}) for end in "ab"]
    losses = [train(job).totals["loss"] for job in jobs]
    assert losses[0] < 0.75 * math.log(VOCAB)
    assert curve(jobs[0]) == curve(jobs[1])
    assert (jobs[0].out / "model.safetensors").read_bytes() == (jobs[1].out / "model.safetensors").read_bytes()


def test_a_missing_package_is_named_before_work_starts(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError, match="needs a GPU"):
        build_optimizer(tiny(), Adam8bitConfig())
    from llmctl.train.optimizers import _eight_bit

    with pytest.raises(UsageError, match="needs the package bitsandbytes") as caught:
        _eight_bit([], Adam8bitConfig(), torch.device("cuda"))
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize("name", ["sophia", "adafactor", "adamw8bit"])
def test_what_cannot_work_on_shards_is_refused_with_the_reason(name):
    with pytest.raises(ConfigError, match=f"{name} needs whole parameters, and zero=1 gives each rank a shard"):
        build(PretrainConfig, [parse_overrides([f"optimizer={name}", "zero=1"])])


def test_sophia_is_refused_on_several_ranks():
    with pytest.raises(ConfigError, match="sophia runs in a single process only"):
        build(PretrainConfig, [parse_overrides(["optimizer=sophia", "nproc=2"])])
