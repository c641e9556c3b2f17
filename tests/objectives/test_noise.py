"""NEFTune: how large the noise is, what it depends on and what not, and that only training sees it."""

import json

import numpy as np
import pytest
import torch

from llmctl.config.train import SftConfig
from llmctl.model.likelihood import Tensors, hidden_states
from llmctl.objectives.chats import PackedChats, read_chats
from llmctl.objectives.noise import NoisyChats
from llmctl.objectives.start import open_model
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stages import stage_named
from llmctl.tokens.batch import NOISE
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.train.loader import Loader, Noisy, Plan

from .conftest import NANO, QUICK

WIDTH, ALPHA = NANO["width"], 5.0


@pytest.fixture
def packed(checkpoint, chats):
    """The chats in rows of a length: `packed(48)`."""
    tokenizer = Tokenizer.open(checkpoint.data)
    found, _ = read_chats(chats, tokenizer, 48)
    return lambda length: PackedChats(found, length, tokenizer.pad_id)


def noise_by_chat(rows, seed, step):
    source = NoisyChats(rows, ALPHA, WIDTH)
    batch = source.batch_of_step(seed, step, np.arange(rows.count))
    found = {}
    for row in range(rows.count):
        for number, which in enumerate(rows.chats_of(row)):
            found[which] = batch.beside[NOISE][row][batch.documents[row] == number]
    assert (batch.beside[NOISE][batch.documents < 0] == 0).all()
    return found


def test_it_is_uniform_within_the_bound_of_the_paper(packed):
    found = noise_by_chat(packed(48), 0, 0)
    assert len(found) == 25
    scaled = []
    for noise in found.values():
        bound = ALPHA / np.sqrt(noise.shape[0] * WIDTH)
        assert np.abs(noise).max() <= bound
        scaled.append(noise.ravel() / bound)
    drawn = np.concatenate(scaled)
    assert drawn.mean() == pytest.approx(0, abs=0.02)
    assert drawn.std() == pytest.approx(1 / np.sqrt(3), abs=0.01)
    assert np.histogram(drawn, bins=4, range=(-1, 1))[0] / drawn.size == pytest.approx([0.25] * 4, abs=0.02)


def test_it_depends_on_seed_step_and_chat_and_not_on_rows(packed):
    found = noise_by_chat(packed(48), 3, 7)
    longest = max(noise.shape[0] for noise in found.values())
    for which, noise in noise_by_chat(packed(longest), 3, 7).items():
        assert np.array_equal(noise, found[which])
    others = [noise_by_chat(packed(48), seed, step)[0] for seed, step in ((3, 8), (4, 7), (7, 3))]
    assert not any(np.array_equal(other, found[0]) for other in others)
    same = [which for which, noise in found.items() if noise.shape == found[0].shape]
    assert len(same) > 2
    assert len({found[which].tobytes() for which in same}) == len(same)


def test_the_loader_deals_it_to_ranks_and_micro_batches_alike(packed):
    config = {**QUICK, "max_tokens": 48, "seed": 5}
    source = NoisyChats(packed(48), ALPHA, WIDTH)
    assert isinstance(source, Noisy)
    assert not isinstance(packed(48), Noisy)

    def dealt(ranks, micro):
        made = SftConfig.model_validate({**config, "micro_batch_rows": micro})
        parts = []
        for rank in range(ranks):
            with Loader(source, Plan.of(made, 9, rank, ranks)) as loader:
                loader.take(3)  # and so reads step 4 ahead
                parts += [batch.beside[NOISE] for batch in loader.take(4)]
        return np.concatenate(parts)

    whole = dealt(1, 8)
    assert np.array_equal(dealt(2, 2), whole)
    assert np.array_equal(dealt(1, 3), whole)


def test_it_is_added_to_the_embeddings(checkpoint, packed):
    model = open_model(checkpoint, Tokenizer.open(checkpoint.data))
    batch = NoisyChats(packed(48), ALPHA, WIDTH).batch_of_step(0, 0, np.arange(2))
    given = Tensors.of(batch, torch.device("cpu"))
    seen = []
    model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    hidden_states(model, given)
    expected = model.embed_tokens(given.tokens) + given.beside[NOISE]
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=0)


def figures(stages, checkpoint, chats, name, **fields):
    config = SftConfig.model_validate(
        {**QUICK, "max_tokens": 48, "steps": 3, "heldout_fraction": 0.2, "clip_norm": 1e9, **fields}
    )
    call = Call(stage_named("sft"), config, {"input": checkpoint, "chats": chats}, force=True)
    made = execute(call, stages.store, Silent()).artifact
    rows = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    return made, [row[name] for row in rows if name in row]


def test_training_sees_it_and_measuring_does_not(stages, checkpoint, chats):
    still = {"optimizer": {"lr": 1e-12}}
    noisy, losses = figures(stages, checkpoint, chats, "loss", neftune_alpha=10.0, **still)
    clean, clean_losses = figures(stages, checkpoint, chats, "loss", **still)
    assert min(abs(a - b) for a, b in zip(losses, clean_losses, strict=True)) > 1e-3
    held = [made.manifest.totals["heldout_loss"] for made in (noisy, clean)]
    assert held[0] == pytest.approx(held[1], abs=1e-9)
    again, same = figures(stages, checkpoint, chats, "loss", neftune_alpha=10.0, **still)
    assert (again.digest, same) == (noisy.digest, losses)
    _, in_parts = figures(stages, checkpoint, chats, "loss", neftune_alpha=10.0, micro_batch_rows=1, **still)
    assert in_parts == pytest.approx(losses, rel=1e-6)
