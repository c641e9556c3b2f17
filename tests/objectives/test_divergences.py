"""Divergences against closed forms, finite differences and TRL's own function."""

import itertools
import math

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from llmctl.config.distill import DivergenceConfig
from llmctl.objectives.divergences import divergence, likeliest, lumped, ranked, renormalised, tempered

# The logits of torchtune's test of its losses (tests/torchtune/modules/loss/test_kd_losses.py), whose bfloat16 values
# they are; that test's own 1.7209 is the cross-entropy with the teacher's probabilities, entropy included.
STUDENT = [
    [1.1250, -0.4102, -0.0879, -2.5000],
    [0.2676, 0.3535, 0.8711, -1.4688],
    [-0.1084, 1.6641, 0.0084, 0.1196],
    [0.5000, -0.6406, -0.2236, -1.5938],
    [-1.5312, -1.9219, 0.0000, -0.5039],
    [-1.5391, 1.5312, 0.5820, 0.2695],
    [-0.3887, 1.2188, 0.0000, 0.6055],
    [0.5000, 1.3828, 0.1309, -1.0312],
]
TEACHER = [
    [-0.0381, -1.2578, -1.2031, 0.0947],
    [-0.7852, 0.4492, 1.5547, 0.0972],
    [0.8203, 0.0012, 0.7656, 0.3477],
    [-1.5781, 0.4297, 0.5977, 0.3926],
    [1.5156, 0.1641, 2.0781, -0.7734],
    [-0.5898, 0.4453, -0.7969, 0.6328],
    [0.6289, -0.8359, 0.9258, 0.2109],
    [0.0006, 0.5195, 3.2344, -1.5781],
]
EVERY = [
    {"name": "forward_kl"},
    {"name": "reverse_kl"},
    {"name": "jsd"},
    {"name": "jsd", "beta": 0.1},
    {"name": "tvd"},
    {"name": "forward_kl", "temperature": 2.5},
    {"name": "jsd", "beta": 0.7, "temperature": 0.5, "squared": False},
]
by_name = pytest.mark.parametrize("given", EVERY, ids=lambda given: "-".join(map(str, given.values())))


def loss_of(given):
    return TypeAdapter(DivergenceConfig).validate_python(given)


def doubles(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def of_logits(teacher: Tensor, student: Tensor, given) -> Tensor:
    config = loss_of(given)
    return divergence(tempered(teacher, config.temperature), tempered(student, config.temperature), config)


@pytest.mark.parametrize(
    ("given", "mean"),
    [({"name": "forward_kl"}, 0.629284), ({"name": "reverse_kl"}, 0.677486), ({"name": "jsd"}, 0.141547)],
)
def test_means_over_a_known_batch(given: dict, mean: float) -> None:
    teacher, student = doubles(TEACHER).bfloat16(), doubles(STUDENT).bfloat16()
    found = of_logits(teacher, student, given)
    assert found.dtype == torch.float32
    assert found.mean().item() == pytest.approx(mean, abs=2e-6)


def test_two_classes_in_closed_form() -> None:
    p, q, b = 0.8, 0.3, 0.25
    teacher, student = doubles([[p, 1 - p]]).log(), doubles([[q, 1 - q]]).log()

    def kl(p: float, q: float) -> float:
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    m = b * p + (1 - b) * q
    expected = {
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "jsd": b * kl(p, m) + (1 - b) * kl(q, m),
        "tvd": abs(p - q),
    }
    for name, value in expected.items():
        config = loss_of({"name": name, "beta": b} if name == "jsd" else {"name": name})
        assert divergence(teacher, student, config).item() == pytest.approx(value, rel=1e-12), name


def test_temperature_divides_the_logits_and_its_square_keeps_the_gradients_size() -> None:
    teacher, student = doubles(TEACHER), doubles(STUDENT)
    plain = of_logits(teacher / 3, student / 3, {"name": "forward_kl"})
    bare = of_logits(teacher, student, {"name": "forward_kl", "temperature": 3, "squared": False})
    squared = of_logits(teacher, student, {"name": "forward_kl", "temperature": 3})
    torch.testing.assert_close(bare, plain)
    torch.testing.assert_close(squared, 9 * plain)
    sizes = []
    for temperature in (1.0, 100.0):  # of centred logits the gradient tends to their difference over the classes
        given = (student - student.mean(dim=-1, keepdim=True)).requires_grad_()
        target = teacher - teacher.mean(dim=-1, keepdim=True)
        of_logits(target, given, {"name": "forward_kl", "temperature": temperature}).sum().backward()
        sizes.append(given.grad)
    torch.testing.assert_close(sizes[1], (given - target).detach() / 4, rtol=1e-2, atol=1e-2)
    assert 0.3 < (sizes[0].norm() / sizes[1].norm()).item() < 3


@by_name
def test_equal_distributions_are_at_no_distance_and_others_at_some(given: dict) -> None:
    teacher, student = doubles(TEACHER), doubles(STUDENT)
    assert of_logits(teacher, teacher + 5, given).abs().max().item() < 1e-12
    assert (of_logits(teacher, student, given) > 1e-3).all()


def test_bounds() -> None:
    teacher, student = doubles([[50.0, 0, 0]]), doubles([[0.0, 0, 50]])
    assert of_logits(teacher, student, {"name": "tvd"}).item() == pytest.approx(1)
    assert of_logits(teacher, student, {"name": "jsd"}).item() == pytest.approx(math.log(2))


@by_name
def test_gradients_equal_finite_differences(given: dict) -> None:
    teacher, student = doubles(TEACHER), doubles(STUDENT).requires_grad_()
    assert torch.autograd.gradcheck(lambda student: of_logits(teacher, student, given).sum(), (student,), atol=1e-7)


@by_name
def test_gradients_over_the_likeliest_equal_finite_differences(given: dict) -> None:
    config = loss_of(given)
    ids, classes = likeliest(tempered(doubles(TEACHER), config.temperature), 2)

    def total(student: Tensor) -> Tensor:
        return divergence(classes, lumped(tempered(student, config.temperature), ids), config).sum()

    assert torch.autograd.gradcheck(total, (doubles(STUDENT).requires_grad_(),), atol=1e-7)


def test_the_likeliest_and_the_rest() -> None:
    logprobs = doubles([[0.1, 0.4, 0.2, 0.3]]).log()
    ids, classes = likeliest(logprobs, 2)
    assert ids.tolist() == [[1, 3]]
    torch.testing.assert_close(classes.exp(), doubles([[0.4, 0.3, 0.3]]))
    torch.testing.assert_close(lumped(logprobs, torch.tensor([[0]])).exp(), doubles([[0.1, 0.9]]))
    torch.testing.assert_close(renormalised(classes).exp(), doubles([[4 / 7, 3 / 7, 0]]))


def test_the_rest_keeps_its_digits_where_little_is_left() -> None:
    logits = torch.tensor([[30.0, 0.0, 0.0]])
    _, classes = likeliest(tempered(logits, 1.0), 1)
    assert classes[0, 1].item() == pytest.approx(math.log(2) - 30, rel=1e-6)  # 1 - 0.99… is 0 in fp32


@by_name
def test_with_all_but_one_kept_nothing_is_lost_and_with_fewer_it_is_less(given: dict) -> None:
    config, teacher, student = loss_of(given), doubles(TEACHER), doubles(STUDENT)
    theirs, ours = tempered(teacher, config.temperature), tempered(student, config.temperature)
    whole = divergence(theirs, ours, config)
    before = whole
    for count in (3, 2, 1):  # joining classes brings no distributions further apart
        ids, classes = likeliest(theirs, count)
        found = divergence(classes, lumped(ours, ids), config)
        assert (found <= before + 1e-12).all()
        if count == 3:
            torch.testing.assert_close(found, whole)
        before = found


@pytest.mark.parametrize("name", ["forward_kl", "jsd", "tvd"])
def test_renormalised_probabilities_push_the_student_to_the_kept(name: str) -> None:
    config = loss_of({"name": name})
    ids, classes = likeliest(tempered(doubles(TEACHER), 1.0), 2)
    student = doubles(STUDENT).requires_grad_()
    found = divergence(renormalised(classes), lumped(tempered(student, 1.0), ids), config)
    assert found.isfinite().all()
    found.sum().backward()
    others = torch.ones_like(student).scatter(-1, ids, 0).bool()
    assert (student.grad[others] > 0).all()
    torch.testing.assert_close(student.grad.sum(dim=-1), torch.zeros(8, dtype=torch.float64), atol=1e-12, rtol=0)
    if name == "forward_kl":
        p, q = renormalised(classes).exp()[:, :2], student.detach().softmax(dim=-1).gather(-1, ids)
        torch.testing.assert_close(found, (p * (p / q).log()).sum(dim=-1))


def by_rank(teacher: Tensor, student: Tensor, given: dict) -> Tensor:
    config = loss_of({"name": "uld", **given})
    classes = max(teacher.shape[-1], student.shape[-1])
    sides = (ranked(tempered(logits, config.temperature), classes) for logits in (teacher, student))
    return divergence(*sides, config)


def test_distributions_over_different_vocabularies_are_compared_by_rank() -> None:
    teacher, student = doubles([[0.2, 0.5, 0.3]]).log(), doubles([[0.4, 0.6]]).log()
    assert by_rank(teacher, student, {}).item() == pytest.approx(abs(0.5 - 0.6) + abs(0.3 - 0.4) + 0.2)
    assert by_rank(student, teacher, {}).item() == pytest.approx(0.4)
    squares = [[p**0.5 / sum(q**0.5 for q in of) for p in of] for of in ([0.5, 0.3, 0.2], [0.6, 0.4, 0.0])]
    expected = 4 * sum(abs(p - q) for p, q in zip(*squares, strict=True))
    assert by_rank(teacher, student, {"temperature": 2}).item() == pytest.approx(expected)
    assert by_rank(teacher, teacher.flip(-1), {}).item() == pytest.approx(0)


def test_no_pairing_of_tokens_is_closer_than_that_by_rank() -> None:
    teacher, student = doubles(TEACHER)[:, :3], doubles(STUDENT)
    found = by_rank(teacher, student, {})
    p = torch.nn.functional.pad(teacher.softmax(-1), (0, 1))
    q = student.softmax(-1)
    pairings = torch.stack([(p - q[:, list(order)]).abs().sum(-1) for order in itertools.permutations(range(4))])
    torch.testing.assert_close(found, pairings.min(dim=0).values)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradients_by_rank_equal_finite_differences(temperature: float) -> None:
    teacher, student = doubles(TEACHER)[:, :3], doubles(STUDENT).requires_grad_()
    assert torch.autograd.gradcheck(lambda one: by_rank(teacher, one, {"temperature": temperature}), student)
    wider = torch.cat([doubles(TEACHER), doubles(STUDENT)], dim=-1)
    assert torch.autograd.gradcheck(lambda one: by_rank(wider, one, {"temperature": temperature}), student)


@pytest.mark.slow  # imports TRL
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "beta"), [("forward_kl", 0), ("reverse_kl", 1), ("jsd", 0.5), ("jsd", 0.1)])
@pytest.mark.parametrize("temperature", [1.0, 0.9])
def test_value_and_gradient_are_those_of_trl(name: str, beta: float, temperature: float) -> None:
    trl = pytest.importorskip("trl.experimental.gkd")
    given = {"name": name, "temperature": temperature, "squared": False} | ({"beta": beta} if name == "jsd" else {})
    teacher = torch.tensor(TEACHER)
    found = []
    for total in (
        lambda student: of_logits(teacher, student, given).sum() / 8,
        lambda student: trl.GKDTrainer.generalized_jsd_loss(
            student[None], teacher[None], torch.ones(1, 8, dtype=torch.int64), beta=beta, temperature=temperature
        ),
    ):
        student = torch.tensor(STUDENT, requires_grad=True)
        loss = total(student)
        loss.backward()
        found.append((loss.item(), student.grad))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-6)
