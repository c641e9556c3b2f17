"""The preference losses beside TRL's own trainer: the same model and batch, value and gradient."""

import copy

import numpy as np
import pytest
import torch

from llmctl.model import huggingface
from llmctl.model.likelihood import Tensors
from llmctl.objectives.dpo import objective_of
from llmctl.objectives.pair_rows import PackedPairs, answer_logps

from .test_pairs import made_up, nano
from .test_preference import loss_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]

LOSSES = [
    ({"name": "sigmoid"}, {"loss_type": ["sigmoid"]}),
    ({"name": "sigmoid", "beta": 0.5, "divergence": "forward_kl"}, {"f_divergence_type": "forward_kl", "beta": 0.5}),
    ({"name": "sigmoid", "divergence": "js"}, {"f_divergence_type": "js_divergence"}),
    (
        {"name": "sigmoid", "divergence": "alpha", "alpha": 0.3},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
    ),
    ({"name": "robust", "label_smoothing": 0.2}, {"loss_type": ["robust"], "label_smoothing": 0.2}),
    ({"name": "hinge", "beta": 0.2}, {"loss_type": ["hinge"], "beta": 0.2}),
    ({"name": "ipo", "average": True}, {"loss_type": ["ipo"]}),
    ({"name": "sigmoid_norm", "beta": 0.1}, {"loss_type": ["sigmoid_norm"]}),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Our policy and reference, and the same two in transformers."""
    transformers = pytest.importorskip("transformers")
    policy, reference = copy.deepcopy(nano()), copy.deepcopy(nano())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)) * 0.02)
    theirs = []
    for name, model in (("policy", policy), ("reference", reference)):
        folder = tmp_path_factory.mktemp(name)
        huggingface.save(model, folder, None)
        theirs.append(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    return policy, reference, *theirs


@pytest.mark.parametrize(("ours", "theirs"), LOSSES, ids=lambda given: "-".join(map(str, given.values())))
def test_value_and_gradient_are_those_of_trl(models, words, tmp_path, ours, theirs):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    policy, reference, their_policy, their_reference = models
    pairs = made_up(5, seed=9)
    config = trl.DPOConfig(
        **{"beta": 0.1, "loss_type": ["sigmoid"], **theirs},
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False,
    )  # fmt: skip
    rows = datasets.Dataset.from_list([{"prompt": "w1", "chosen": "w2", "rejected": "w3"}])
    trainer = trl.DPOTrainer(
        model=their_policy, ref_model=their_reference, args=config, train_dataset=rows, processing_class=words
    )
    their_policy.zero_grad()
    loss = trainer._compute_loss(their_policy.train(), batch_of(pairs), return_outputs=False)
    loss.backward()

    packed = PackedPairs(pairs, 40, 0)
    order = np.concatenate([packed.pairs_of(row) for row in range(packed.count)])
    with torch.no_grad():
        sides = answer_logps(reference, Tensors.of(packed.batch(np.arange(packed.count)), torch.device("cpu")))
    references = np.zeros((5, 2))
    references[order] = torch.stack([logps for logps, _ in sides], dim=1).numpy()
    given = PackedPairs(pairs, 40, 0, references)
    policy.zero_grad()
    batch = Tensors.of(given.batch(np.arange(given.count)), torch.device("cpu"))
    value = objective_of(given, loss_of(ours)).loss(policy.train(), batch) / 5
    value.backward()

    assert value.item() == pytest.approx(loss.item(), abs=1e-5)
    found = dict(their_policy.named_parameters())
    for name, parameter in policy.named_parameters():
        their = found[name if name.startswith("lm_head") else f"model.{name}"].grad
        torch.testing.assert_close(parameter.grad, their, rtol=1e-4, atol=1e-5)


def batch_of(pairs):
    """As TRL's collator has it: all chosen, then all rejected, padded on the right."""
    answers = [pair.answers[side] for side in range(2) for pair in pairs]
    longest = max(answer.ids.size for answer in answers)
    ids, seen, completion = (torch.zeros(len(answers), longest, dtype=torch.int64) for _ in range(3))
    for row, answer in enumerate(answers):
        ids[row, : answer.ids.size] = torch.from_numpy(answer.ids)
        seen[row, : answer.ids.size] = 1
        completion[row, answer.prompt : answer.ids.size] = 1
    return {"input_ids": ids, "attention_mask": seen, "completion_mask": completion}
