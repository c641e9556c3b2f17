"""The losses of preferences beside TRL's own trainers: the same model and batch, value and gradient."""

import copy

import numpy as np
import pytest
import torch

from llmctl.config.preference import RewardLossConfig
from llmctl.model import huggingface, scoring
from llmctl.model.likelihood import Tensors
from llmctl.objectives.dpo import objective_of
from llmctl.objectives.pair_rows import PackedPairs, answer_logps
from llmctl.objectives.pairs import Answer, Pair, mismatched
from llmctl.objectives.reward import RewardObjective
from llmctl.tokens.batch import IGNORE
from llmctl.train.local import Local

from .test_pairs import VOCAB, made_up, nano
from .test_preference import loss_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]

CPU = torch.device("cpu")
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
ALONE = [  # without a reference
    ({"name": "simpo", "beta": 2.5, "gamma": 0.7}, {"loss_type": "simpo", "simpo_gamma": 0.7, "cpo_alpha": 0.0}),
    ({"name": "cpo", "beta": 0.3, "alpha": 0.0}, {"cpo_alpha": 0.0}),
    ({"name": "cpo", "beta": 0.3, "alpha": 0.8}, {"cpo_alpha": 0.8}),
    ({"name": "orpo", "beta": 0.4}, {}),
]
REWARDS = [
    ({}, {}),
    ({"margin": True}, {}),
    ({"margin": True, "centring": 0.05}, {"center_rewards_coefficient": 0.05}),
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


@pytest.fixture
def rows_of():
    """The rows that TRL's trainers ask for when they are made: `rows_of({"prompt": …})`, twice the same."""
    datasets = pytest.importorskip("datasets")
    return lambda row: datasets.Dataset.from_list([row, row])


@pytest.fixture
def settings(tmp_path):
    """What the configuration of every trainer of TRL needs to run here."""
    pytest.importorskip("trl")
    return {
        "output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": [], "gradient_checkpointing": False,
    }  # fmt: skip


PAIR = {"prompt": "w1", "chosen": "w2", "rejected": "w3"}


@pytest.mark.parametrize(("ours", "theirs"), LOSSES, ids=lambda given: "-".join(map(str, given.values())))
def test_losses_with_a_reference(models, words, rows_of, settings, ours, theirs):
    from trl import DPOConfig, DPOTrainer

    policy, reference, their_policy, their_reference = models
    pairs = made_up(5, seed=9)
    config = DPOConfig(**{"beta": 0.1, "loss_type": ["sigmoid"], **theirs}, **settings)
    trainer = DPOTrainer(
        model=their_policy, ref_model=their_reference, args=config, train_dataset=rows_of(PAIR), processing_class=words
    )
    their_policy.zero_grad()
    loss = trainer._compute_loss(their_policy.train(), batch_of(pairs), return_outputs=False)
    loss.backward()
    given = PackedPairs(pairs, 40, 0, references_of(reference, pairs))
    assert step_of(policy, objective_of(given, loss_of(ours))) == pytest.approx(loss.item(), abs=1e-5)
    same_gradients(policy, their_policy)


@pytest.mark.parametrize(("ours", "theirs"), ALONE, ids=lambda given: "-".join(map(str, given.values())))
def test_losses_without_a_reference(models, words, rows_of, settings, ours, theirs):
    """TRL takes the likelihood over all tokens of the batch, and for ORPO over the prompts too; we over each answer.

    On answers of one length behind prompts of one token, which nothing predicts, the two are the same.
    """
    if ours["name"] == "orpo":
        from trl.experimental.orpo import ORPOConfig as TheirConfig
        from trl.experimental.orpo import ORPOTrainer as TheirTrainer
    else:
        from trl.experimental.cpo import CPOConfig as TheirConfig
        from trl.experimental.cpo import CPOTrainer as TheirTrainer
    policy, _, their_policy, _ = models
    pairs = alike(5, seed=11) if ours["name"] != "simpo" else made_up(5, seed=11)
    config = TheirConfig(beta=ours["beta"], max_length=64, **theirs, **settings)
    trainer = TheirTrainer(model=their_policy, args=config, train_dataset=rows_of(PAIR), processing_class=words)
    their_policy.zero_grad()
    loss = trainer.compute_loss(their_policy.train(), sides_of(pairs))
    loss.backward()
    assert step_of(policy, objective_of(PackedPairs(pairs, 40, 0), loss_of(ours))) == pytest.approx(
        loss.item(), abs=1e-5
    )
    same_gradients(policy, their_policy)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 1.6)])
def test_kto(models, words, rows_of, settings, weights):
    from trl import KTOConfig, KTOTrainer

    policy, reference, their_policy, their_reference = models
    pairs = mismatched(made_up(6, seed=14), 64, "made up")
    good, bad = weights
    config = KTOConfig(
        beta=0.3, desirable_weight=good, undesirable_weight=bad, train_sampling_strategy="sequential", **settings
    )
    trainer = KTOTrainer(
        model=their_policy, ref_model=their_reference, args=config, processing_class=words,
        train_dataset=rows_of({"prompt": "w1", "completion": "w2", "label": True}),
    )  # fmt: skip
    own, other = (padded([pair.answers[side] for pair in pairs]) for side in range(2))
    batch = {
        **own, **{f"KL_{name}": value for name, value in other.items()},
        "label": torch.tensor([pair.desirable for pair in pairs]),
    }  # fmt: skip
    their_policy.zero_grad()
    loss = trainer._compute_loss(their_policy.train(), batch, return_outputs=False)
    loss.backward()
    (kl,) = trainer._metrics["train"]["kl"]
    loss_config = loss_of({"name": "kto", "beta": 0.3, "desirable_weight": good, "undesirable_weight": bad})
    objective = objective_of(PackedPairs(pairs, 40, 0, references_of(reference, pairs)), loss_config)
    strategy = Local(CPU)
    strategy.model, strategy.autocast = policy, None
    objective.look_ahead([objective.rows.batch(np.arange(objective.rows.count))], strategy)
    assert objective.divergence == pytest.approx(kl, abs=1e-5)
    assert kl > 0.01  # else nothing of z is compared
    assert step_of(policy, objective) == pytest.approx(loss.item(), abs=1e-5)
    same_gradients(policy, their_policy)


@pytest.mark.parametrize(("ours", "theirs"), REWARDS, ids=["plain", "margin", "margin-and-centring"])
def test_rewards(models, words, rows_of, settings, tmp_path, ours, theirs):
    import transformers
    from trl import RewardConfig, RewardTrainer

    policy = copy.deepcopy(models[0])
    huggingface.save(policy, tmp_path / "model", None)
    scoring.add_head(policy, torch.randn(1, policy.config.width, generator=torch.Generator().manual_seed(7)))
    theirs_model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", num_labels=1, dtype=torch.float32, pad_token_id=0
    )
    with torch.no_grad():
        theirs_model.score.weight.copy_(policy.score.weight)
    trainer = RewardTrainer(
        model=theirs_model, args=RewardConfig(**theirs, **settings), train_dataset=rows_of(PAIR), processing_class=words
    )
    theirs_model.config.pad_token_id = 0  # the trainer sets the tokenizer's, which our ids use for a word
    pairs = made_up(5, seed=17)
    batch = batch_of(pairs)
    del batch["completion_mask"]
    if ours:
        batch["margin"] = torch.tensor([pair.margin for pair in pairs])
    theirs_model.zero_grad()
    loss = trainer.compute_loss(theirs_model.train(), batch)
    loss.backward()
    objective = RewardObjective(PackedPairs(pairs, 40, 0), RewardLossConfig(**ours))
    assert step_of(policy, objective) == pytest.approx(loss.item(), abs=1e-5)
    torch.testing.assert_close(policy.score.weight.grad, theirs_model.score.weight.grad, rtol=1e-4, atol=1e-5)
    same_gradients(policy, theirs_model)


def step_of(model, objective):
    """The mean loss over all rows, its gradient in the model."""
    model.zero_grad()
    rows = objective.rows
    value = objective.loss(model.train(), Tensors.of(rows.batch(np.arange(rows.count)), CPU)) / len(rows.pairs)
    value.backward()
    return value.item()


def same_gradients(ours, theirs):
    found = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.grad is not None:
            their = found[name if name.startswith(("lm_head", "score")) else f"model.{name}"].grad
            torch.testing.assert_close(parameter.grad, their, rtol=1e-4, atol=1e-5)


def references_of(reference, pairs):
    """Log-probabilities of both answers under the reference, in the order of the pairs."""
    packed = PackedPairs(pairs, 40, 0)
    order = np.concatenate([packed.pairs_of(row) for row in range(packed.count)])
    with torch.no_grad():
        sides = answer_logps(reference, Tensors.of(packed.batch(np.arange(packed.count)), CPU))
    references = np.zeros((len(pairs), 2))
    references[order] = torch.stack([logps for logps, _ in sides], dim=1).numpy()
    return references


def alike(count, seed):
    """Pairs whose prompts have one token, and whose answers all have four."""
    rng = np.random.default_rng(seed)
    answers = [rng.integers(1, VOCAB, 5) for _ in range(2 * count)]
    made = [Answer(ids, np.append(ids[1:], IGNORE), 1) for ids in answers]
    return [Pair(f"pair/{at}", (made[2 * at], made[2 * at + 1])) for at in range(count)]


def padded(answers):
    """As TRL's collators have them, padded on the right."""
    longest = max(answer.ids.size for answer in answers)
    ids, seen, completion = (torch.zeros(len(answers), longest, dtype=torch.int64) for _ in range(3))
    for row, answer in enumerate(answers):
        ids[row, : answer.ids.size] = torch.from_numpy(answer.ids)
        seen[row, : answer.ids.size] = 1
        completion[row, answer.prompt : answer.ids.size] = 1
    return {"input_ids": ids, "attention_mask": seen, "completion_mask": completion}


def batch_of(pairs):
    """All chosen, then all rejected."""
    return padded([pair.answers[side] for side in range(2) for pair in pairs])


def sides_of(pairs):
    """Chosen and rejected under names of their own, as TRL's older trainers have them."""
    batch = {}
    for side, name in enumerate(("chosen", "rejected")):
        made = padded([pair.answers[side] for pair in pairs])
        labels = made["input_ids"].masked_fill(made["completion_mask"] == 0, IGNORE)
        batch |= {f"{name}_input_ids": made["input_ids"], f"{name}_attention_mask": made["attention_mask"]}
        batch |= {f"{name}_labels": labels}
    return batch
