import functools
import json

import pytest
import torch
from synthetic_run import MODEL, SEQ_LEN, VOCAB, MadeUpRows, curve, make_job, train

from llmctl.config.errors import ConfigError
from llmctl.config.load import build, parse_overrides
from llmctl.config.model import ModelConfig
from llmctl.config.train import PretrainConfig
from llmctl.model.likelihood import Tensors
from llmctl.model.transformer import Transformer
from llmctl.objectives.losses import next_token
from llmctl.train import loop
from llmctl.train.recompute import recompute
from llmctl.train.scaling import GROW_AFTER, LossScale

CPU = torch.device("cpu")
FEW = {"model": {**MODEL, "layers": 1}, "batch_rows": 2, "eval_every_steps": 0}  # fp16 is slow on CPUs


def test_fp16_follows_fp32_with_a_scaled_loss(tmp_path):
    exact, rough = (make_job(tmp_path / name, **FEW, steps=6, precision=name) for name in ("fp32", "fp16"))
    train(exact)
    train(rough)
    assert curve(exact) != curve(rough)
    for a, b in zip(curve(exact), curve(rough), strict=True):
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=5e-3)
        assert a.get("grad_norm", 0) == pytest.approx(b.get("grad_norm", 0), rel=2e-2)


def test_an_overflow_halves_the_scale_and_the_step_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LossScale", functools.partial(LossScale, value=2.0**26))
    jobs = [make_job(tmp_path / end, **FEW, precision="fp16", steps=16, checkpoint_every_steps=5) for end in "ab"]
    train(jobs[0])
    rows = [json.loads(line) for line in jobs[0].metrics_file.read_text().splitlines()]
    scales = [row["loss_scale"] for row in rows if "loss_scale" in row]
    assert 3 <= len(scales) < 12
    assert scales == [2.0 ** (25 - number) for number in range(len(scales))]
    assert [row["step"] for row in rows if "loss_scale" in row] == list(range(1, len(scales) + 1))
    assert sum("loss" in row for row in rows) == 16 - len(scales)
    assert {row["tokens"] for row in rows if "loss_scale" in row} == {0}

    class Dying(Exception):  # noqa: N818
        pass

    def die(done, *args, **facts):
        if done == 13:
            raise Dying

    monkeypatch.setattr(type(jobs[1].progress), "update", lambda self, *args, **facts: die(*args))
    with pytest.raises(Dying):
        train(jobs[1])
    monkeypatch.undo()
    train(jobs[1])  # its scale comes from the state, not from the start
    assert curve(jobs[1]) == curve(jobs[0])


def test_the_scale_grows_after_many_good_steps_and_has_a_floor():
    scale = LossScale(2.0)
    for _ in range(GROW_AFTER):
        scale.went_well()
    assert (scale.value, scale.good) == (4.0, 0)
    assert [scale.overflowed() for _ in range(3)] == [True, True, False]
    assert scale.value == 1.0


@pytest.mark.parametrize("how", ["full", "selective"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_activations_give_the_same_numbers(tmp_path, how, precision):
    plain = make_job(tmp_path / "plain", steps=4, precision=precision)
    again = make_job(tmp_path / "again", steps=4, precision=precision, recompute=how)
    train(plain)
    train(again)
    assert curve(plain) == curve(again)  # bitwise
    assert (plain.out / "model.safetensors").read_bytes() == (again.out / "model.safetensors").read_bytes()


def kept_bytes(how):
    """Bytes that autograd keeps between forward and backward, inputs and weights left out."""
    model = Transformer(ModelConfig.model_validate({**MODEL, "layers": 6}), VOCAB)
    model.init_weights(0)
    recompute(model, how)
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = Tensors.of(MadeUpRows(40).batch(list(range(16))), CPU)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = next_token(model, batch)
    held = sum(kept.values())
    loss.backward()
    return held


def test_recomputing_keeps_less():
    assert kept_bytes("full") < 0.4 * kept_bytes("none")


@pytest.mark.parametrize("how", ["full", "selective"])
def test_products_run_again_only_where_all_is_recomputed(how):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            self.count += operator in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
            return operator(*args, **(kwargs or {}))

    counts = {}
    for name in ("none", how):
        model = Transformer(ModelConfig.model_validate(MODEL), VOCAB)
        model.init_weights(0)
        recompute(model, name)
        batch = Tensors.of(MadeUpRows(40).batch([0, 1]), CPU)
        with Products() as products:
            next_token(model, batch).backward()
        counts[name] = products.count
    extra = counts[how] - counts["none"]
    # q, k, v, o, gate, up of two layers; of down nothing is needed but what goes into it
    assert extra == (2 * 6 if how == "full" else 0)


def test_recompute_and_compile_are_not_offered_together():
    with pytest.raises(ConfigError, match="compile chooses itself what it recomputes"):
        build(PretrainConfig, [parse_overrides(["compile=true", "recompute=full"])])


def test_the_z_loss_is_its_formula_and_its_gradient():
    model = Transformer(ModelConfig.model_validate(MODEL), VOCAB)
    model.init_weights(0)
    batch = Tensors.of(MadeUpRows(4).batch([0, 1, 2]), CPU)
    plain = next_token(model, batch)
    with_z = next_token(model, batch, z_loss=0.01)
    from llmctl.model.attention import packed
    from llmctl.tokens.batch import IGNORE

    hidden = model(batch.tokens, batch.positions, packed(batch.documents, one_each=batch.one_each))
    log_z = model.logits(hidden[batch.labels != IGNORE]).exp().sum(dim=-1).log()
    torch.testing.assert_close(with_z - plain, 0.01 * log_z.square().sum(), rtol=1e-4, atol=0)
    chunked = next_token(model, batch, VOCAB * 5, z_loss=0.01)
    torch.testing.assert_close(chunked, with_z, rtol=1e-6, atol=0)
    assert SEQ_LEN > 5
    grown = torch.autograd.grad(with_z - plain, model.norm.weight)[0]
    assert grown.abs().max() > 0
