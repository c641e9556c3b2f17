import pytest
import torch
from synthetic_run import MODEL, SEQ_LEN, VOCAB, Counting, make_job

from llmctl.config.errors import UsageError
from llmctl.model.transformer import Transformer
from llmctl.train.local import Local
from llmctl.train.loop import fit
from llmctl.train.memory import parts_of


class Greedy(Counting):
    """Wants a petabyte in its second step."""

    seen = 0

    def loss(self, model, batch):
        self.seen += 1
        if self.seen == 3:
            torch.empty(10**15)
        return super().loss(model, batch)


def run(tmp_path, **fields):
    job = make_job(tmp_path, **{"steps": 3, "batch_rows": 8, **fields})
    model = Transformer(job.config.model, VOCAB)
    model.init_weights(0)
    with pytest.raises(UsageError, match="out of memory; the largest parts: ") as caught:
        fit(job, model, Greedy(), steps=3, heldout_rows=None)
    return caught.value


def test_running_out_of_memory_names_the_largest_parts_and_what_to_change(tmp_path):
    error = run(tmp_path)
    assert "activations of a micro-batch" in error.what.partition(",")[0]
    assert error.hint == "micro_batch_rows=2; or recompute=full; or precision=bf16"


def test_where_the_state_is_largest_it_is_to_be_shared_out(tmp_path):
    wide = {**MODEL, "width": 256, "ffn_width": 2048}
    error = run(tmp_path, model=wide, micro_batch_rows=1, recompute="full", batch_rows=2)
    assert "optimizer state" in error.what.partition(",")[0]
    assert error.hint == "--nproc N --zero 3; or offload=cpu; or optimizer=muon or lion, which keep one moment"


def test_another_runtime_error_is_left_alone(tmp_path):
    class Broken(Counting):
        def loss(self, model, batch):
            raise RuntimeError("shapes do not match")

    job = make_job(tmp_path, steps=1)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit(job, Transformer(job.config.model, VOCAB), Broken(), steps=1, heldout_rows=None)


def test_parts_are_counted(tmp_path):
    config = make_job(tmp_path).config
    model = Transformer(config.model, VOCAB)
    model.init_weights(0)
    strategy = Local(torch.device("cpu"))
    strategy.prepare(model, config, 1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    strategy.step(1.0, lambda norm: True)
    parts = parts_of(model, strategy.trained, config, 4, SEQ_LEN)
    count, tensors = model.parameters_count(), len(list(model.parameters()))
    assert (parts["parameters"], parts["gradients"]) == (4 * count, 4 * count)
    assert parts["optimizer state"] == 8 * count + 4 * tensors  # two moments; the step of each tensor
    assert parts["logits"] == 8 * 4 * SEQ_LEN * VOCAB
    assert list(parts.values()) == sorted(parts.values(), reverse=True)
