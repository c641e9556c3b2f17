"""A step's loss and gradient are those of its documents, however they are packed, padded and dealt out."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from splits import LAYOUTS, LONGEST, PLAIN, Laid, Layout, documents, loss_and_gradient, splits, take_a_step
from synthetic_run import MODEL, WIDE, make_job

from llmctl.train.launch import run_ranks

HERE = Path(__file__).parent


def assert_same(found, expected):
    """To the precision of sums in fp32: 24 bits, less what some hundred additions in another order lose."""
    (loss, gradient), (its_loss, its_gradient) = found, expected
    assert loss == pytest.approx(its_loss, rel=1e-6)
    assert gradient.keys() == its_gradient.keys()
    for name, value in gradient.items():
        assert value.abs().max() > 0, name
        assert (value - its_gradient[name]).abs().max() < 2e-6 * its_gradient[name].abs().max() + 1e-9, name


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    directory = tmp_path_factory.mktemp("reference")
    for name, shape in (("narrow", MODEL), ("wide", WIDE)):
        take_a_step(directory / name, LAYOUTS["one document a row"], model=shape, micro_batch_rows=16)
    return directory


def test_the_layouts_hold_the_same_documents_in_rows_of_different_shapes():
    shapes = set()
    for layout in LAYOUTS.values():
        rows = Laid(layout)
        batch = rows.batch(range(rows.count))
        assert batch.targets == sum(len(document) - 1 for document in documents())
        shapes.add(batch.tokens.shape)
    assert shapes == {(12, 18), (8, 24), (8, 50), (4, 160)}


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(PLAIN),
    seq_len=st.integers(LONGEST, 3 * LONGEST),
    blank_rows=st.integers(0, 3),
    micro=st.integers(1, 20),
)
def test_packing_padding_and_accumulation_change_nothing(
    reference, tmp_path_factory, order, seq_len, blank_rows, micro
):
    directory = tmp_path_factory.mktemp("split")
    take_a_step(directory, Layout(tuple(order), seq_len, blank_rows), model=MODEL, micro_batch_rows=micro)
    assert_same(loss_and_gradient(directory), loss_and_gradient(reference / "narrow"))


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [2, 4])
def test_ranks_change_nothing_however_the_documents_are_packed(reference, tmp_path, monkeypatch, nproc):
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    job = make_job(tmp_path, model=WIDE, batch_rows=4, nproc=nproc)
    run_ranks(job, "splits:train_splits")
    expected = loss_and_gradient(reference / "wide")
    for name, _, _ in splits(nproc):
        assert_same(loss_and_gradient(job.out / name), expected)
