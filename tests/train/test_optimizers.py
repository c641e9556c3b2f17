import torch
from synthetic_run import MODEL, VOCAB
from torch import nn

from llmctl.config.model import ModelConfig
from llmctl.config.train import AdamWConfig
from llmctl.model.transformer import Transformer
from llmctl.train.optimizers import build_optimizer, parameter_groups


def test_matrices_decay_and_gains_do_not():
    model = Transformer(ModelConfig.model_validate(MODEL), VOCAB)
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
