"""The decoder against closed forms, and what no output may depend on."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from llmctl.config.model import ModelConfig
from llmctl.model import attention
from llmctl.model.attention import PackedAttention, packed
from llmctl.model.norms import RMSNorm
from llmctl.model.positions import rotary_angles, rotate
from llmctl.model.transformer import Transformer, flops_per_token, outline

VOCAB = 97


def make(seed: int = 0, **changes: object) -> Transformer:
    model = Transformer(ModelConfig.model_validate({"name": "nano", **changes}), VOCAB)
    model.init_weights(seed)
    return model


def logits_of(
    model: Transformer, tokens: torch.Tensor, positions: torch.Tensor, documents: torch.Tensor
) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(tokens, positions, packed(documents)))


def single(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and documents of rows that are one document each."""
    rows, length = tokens.shape
    return torch.arange(length).expand(rows, length), torch.zeros(rows, length, dtype=torch.int32)


def test_an_outline_has_every_shape_and_no_number_and_takes_the_weights_of_another() -> None:
    model = make(positions="learned", tied_embeddings=False)
    bare = outline(model.config, VOCAB)
    assert {name: x.shape for name, x in bare.state_dict().items()} == {
        name: x.shape for name, x in model.state_dict().items()
    }
    assert {x.device.type for x in bare.parameters()} == {"meta"}
    bare.load_state_dict(model.state_dict(), assign=True)
    tokens = torch.arange(10).view(2, 5)
    assert torch.equal(logits_of(bare, tokens, *single(tokens)), logits_of(model, tokens, *single(tokens)))
    assert nn.Linear(9, 9).weight.std() > 0.1, "layers that are made later draw their weights"


def test_rms_norm_is_its_formula_in_float64() -> None:
    norm = RMSNorm(32, 1e-5)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1)) * 7
    with torch.no_grad():
        norm.weight.normal_(generator=torch.Generator().manual_seed(2))
        exact = x.double() / torch.sqrt((x.double() ** 2).mean(-1, keepdim=True) + 1e-5) * norm.weight.double()
        assert torch.allclose(norm(x).double(), exact, rtol=1e-6, atol=1e-6)
        assert norm.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


def test_rotary_turns_each_pair_by_position_times_frequency() -> None:
    width, base = 8, 10_000.0
    positions = torch.tensor([[0, 1, 5, 1000]])
    x = torch.randn(1, 4, 2, width, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, rotary_angles(positions, width, base))
    for t, position in enumerate(positions[0].tolist()):
        for pair in range(width // 2):
            angle = position * base ** (-2 * pair / width)
            for head in range(2):
                a, b = x[0, t, head, pair].item(), x[0, t, head, pair + width // 2].item()
                assert turned[0, t, head, pair].item() == pytest.approx(
                    a * math.cos(angle) - b * math.sin(angle), abs=1e-4
                )
                assert turned[0, t, head, pair + width // 2].item() == pytest.approx(
                    b * math.cos(angle) + a * math.sin(angle), abs=1e-4
                )


def test_rotary_scores_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(3))
    scores = [
        (
            rotate(q, rotary_angles(torch.tensor([[p + 7]]), 16, 1e4))
            * rotate(k, rotary_angles(torch.tensor([[p]]), 16, 1e4))
        ).sum()
        for p in (0, 3, 200)
    ]
    assert torch.allclose(scores[0], scores[1], atol=1e-5)
    assert torch.allclose(scores[0], scores[2], atol=1e-4)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_no_output_depends_on_later_tokens(kv_heads: int) -> None:
    model = make(kv_heads=kv_heads)
    tokens = torch.randint(0, VOCAB, (2, 24), generator=torch.Generator().manual_seed(0))
    positions, documents = single(tokens)
    before = logits_of(model, tokens, positions, documents)
    changed = tokens.clone()
    changed[:, 13] = (changed[:, 13] + 1) % VOCAB
    after = logits_of(model, changed, positions, documents)
    assert torch.equal(before[:, :13], after[:, :13])
    assert not torch.allclose(before[:, 13:], after[:, 13:])


def packed_row(lengths: list[int], padding: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = sum(lengths) + padding
    tokens = torch.randint(0, VOCAB, (1, total), generator=torch.Generator().manual_seed(seed))
    positions = torch.cat([torch.arange(n) for n in lengths] + [torch.zeros(padding, dtype=torch.int64)])[None]
    documents = torch.repeat_interleave(torch.tensor([*range(len(lengths)), -1]), torch.tensor([*lengths, padding]))[
        None
    ]
    return tokens, positions, documents.int()


def test_a_packed_row_equals_its_documents_apart() -> None:
    model = make()
    lengths = [5, 1, 11, 7]
    tokens, positions, documents = packed_row(lengths, padding=3)
    together = logits_of(model, tokens, positions, documents)
    start = 0
    for length in lengths:
        alone = tokens[:, start : start + length]
        apart = logits_of(model, alone, *single(alone))
        assert torch.allclose(together[:, start : start + length], apart, atol=1e-5)
        start += length
    assert torch.isfinite(together).all()


def test_no_output_depends_on_another_document_or_on_padding() -> None:
    model = make()
    tokens, positions, documents = packed_row([6, 9, 5], padding=4)
    before = logits_of(model, tokens, positions, documents)
    for touched in (0, 1, 2, -1):
        changed = torch.where(documents == touched, (tokens + 1) % VOCAB, tokens)
        after = logits_of(model, changed, positions, documents)
        others = documents != touched
        assert torch.equal(before[others], after[others])
        assert not torch.allclose(before[~others], after[~others])


@pytest.mark.parametrize(
    ("rows", "causal_alone"),
    [
        ([[0, 0, 0, 0]], True),
        ([[0, 0, -1, -1], [0, 0, 0, 0]], True),
        ([[0, 0, 1, 1], [0, 0, 0, 0]], False),
        ([[-1, 0, 0, 0]], False),
        ([[0, -1, 0, 0]], False),
        ([[-1, -1, -1, -1]], False),
    ],
)
def test_the_causal_kernel_runs_exactly_where_it_gives_the_same(rows: list[list[int]], causal_alone: bool) -> None:
    documents = torch.tensor(rows, dtype=torch.int32)
    attend = packed(documents)
    assert (attend.mask is None) == causal_alone
    if causal_alone:
        length = documents.shape[1]
        real = (documents[:, :, None] == documents[:, None, :]) & (documents >= 0)[:, :, None]
        mask = (real & torch.ones(length, length, dtype=torch.bool).tril()) | torch.eye(length, dtype=torch.bool)
        q, k, v = torch.randn(3, len(rows), length, 2, 8, generator=torch.Generator().manual_seed(0))
        masked = PackedAttention(mask[:, None])(0, q, k, v)
        assert torch.allclose(attend(0, q, k, v)[documents >= 0], masked[documents >= 0], atol=1e-6)


@pytest.mark.parametrize("lengths", [[24], [5, 11, 7]])
def test_attention_written_out_in_bf16_is_as_near_to_fp32_as_the_fused_kernel(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, documents = packed_row(lengths, padding=0 if lengths == [24] else 1)
    attend, generator = attention.packed(documents), torch.Generator().manual_seed(1)
    drawn = [torch.randn(1, 24, heads, 8, generator=generator) for heads in (4, 2, 2)]

    def results(dtype: torch.dtype, held: int) -> list[torch.Tensor]:
        monkeypatch.setattr(attention, "SCORES_HELD", held)
        q, k, v = (x.detach().to(dtype, copy=True).requires_grad_() for x in drawn)
        mixed = attend(0, q, k, v)
        mixed.float().square().sum().backward()
        return [x.float() for x in (mixed.detach(), q.grad, k.grad, v.grad) if x is not None]

    exact, written_out, fused = (
        results(*given) for given in ((torch.float32, 0), (torch.bfloat16, 1 << 23), (torch.bfloat16, 0))
    )
    assert not torch.equal(written_out[1], fused[1])  # two ways indeed
    for true, ours, theirs in zip(exact, written_out, fused, strict=True):
        assert (ours - true).norm() < 2 * (theirs - true).norm() + 1e-6
        assert (ours - true).norm() < 0.02 * true.norm()


def test_attention_shares_key_heads_among_neighbouring_query_heads() -> None:
    q = torch.randn(1, 5, 4, 8, generator=torch.Generator().manual_seed(0))
    k, v = torch.randn(2, 1, 5, 2, 8, generator=torch.Generator().manual_seed(1))
    grouped = packed(torch.zeros(1, 5))(0, q, k, v)
    spread = packed(torch.zeros(1, 5))(0, q, k.repeat_interleave(2, dim=2), v.repeat_interleave(2, dim=2))
    assert torch.allclose(grouped, spread, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_reaches_every_parameter(tied: bool) -> None:
    model = make(tied_embeddings=tied)
    tokens, positions, documents = packed_row([40, 30], padding=2)
    loss = functional.cross_entropy(model.logits(model(tokens, positions, packed(documents)))[0, :-1], tokens[0, 1:])
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_it_overfits_one_batch() -> None:
    torch.manual_seed(0)
    model = make()
    tokens = torch.randint(0, VOCAB, (2, 32))
    positions, documents = single(tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = functional.cross_entropy(
            model.logits(model(tokens, positions, packed(documents)))[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_a_fresh_model_is_near_the_uniform_loss() -> None:
    model = make(name="tiny")
    tokens = torch.randint(0, VOCAB, (4, 64), generator=torch.Generator().manual_seed(0))
    logits = logits_of(model, tokens, *single(tokens))
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(VOCAB), abs=0.35)


def test_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(5)
    first = make(seed=1).state_dict()
    torch.manual_seed(6)
    second, third = make(seed=1).state_dict(), make(seed=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embed_tokens.weight"], third["embed_tokens.weight"])
    deviation = math.sqrt(2 / (5 * 64))
    assert first["layers.0.mlp.up_proj.weight"].std().item() == pytest.approx(deviation, rel=0.05)
    assert first["layers.0.mlp.down_proj.weight"].std().item() == pytest.approx(deviation / 2, rel=0.05)


def test_bfloat16_keeps_its_dtype_and_stays_close() -> None:
    model = make()
    tokens = torch.randint(0, VOCAB, (2, 16), generator=torch.Generator().manual_seed(0))
    exact = logits_of(model, tokens, *single(tokens))
    rounded = logits_of(model.to(torch.bfloat16), tokens, *single(tokens))
    assert rounded.dtype == torch.bfloat16
    assert torch.allclose(rounded.float(), exact, atol=0.1)


def test_counts_of_parameters_and_operations() -> None:
    model = make()
    # embedding + 2 x (q, o: 64x64; k, v: 32x64; three of 176x64; two norms) + norm
    assert model.parameters_count() == VOCAB * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 176 * 64 + 2 * 64) + 64
    weights = VOCAB * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 176 * 64)
    assert flops_per_token(model.config, VOCAB, 128) == 6 * weights + 12 * 2 * 64 * 128
