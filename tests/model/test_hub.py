"""`import hf://…` from a small server that speaks as much of the hub's protocol as reading needs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmctl.config.errors import InputError
from llmctl.config.inout import ImportConfig
from llmctl.config.model import ModelConfig
from llmctl.model.huggingface import load, save
from llmctl.model.transformer import Transformer
from llmctl.pipeline.execute import Call, Outcome, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stages import stage_named
from llmctl.store.store import Store
from tests.data.fetch import servers
from tests.data.fetch.test_object_stores import CREDENTIALS, Bucket


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """The model `me/small`, empty at first."""
    pytest.importorskip("huggingface_hub")
    for variable in CREDENTIALS:
        monkeypatch.delenv(variable, raising=False)
    bucket = Bucket()
    bucket.files.clear()

    def answer(handler: servers.Handler) -> None:
        for ours, theirs in (("/api/models/me/small", "/api/datasets/me/repo"), ("/me/small/", "/datasets/me/repo/")):
            if handler.path.startswith(ours):
                handler.path = theirs + handler.path.removeprefix(ours)
        bucket.hf(handler)

    with servers.site() as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url)
        site.rest = answer
        yield bucket


def imported(store: Store, address: str) -> Outcome:
    config = ImportConfig(sources=(address,), allow_private=True)
    return execute(Call(stage_named("import"), config, {}), store, Silent())


def test_a_model_of_the_hub_becomes_a_checkpoint(hub: Bucket, store: Store, tmp_path: Path) -> None:
    model = Transformer(ModelConfig(name="nano"), 101)
    model.init_weights(0)
    save(model, tmp_path / "model", None)
    for path in (tmp_path / "model").iterdir():
        hub.files[path.name] = path.read_bytes()
    hub.files |= {"pytorch_model.bin": b"\x80\x02evil", "modeling.py": b"evil", "onnx/model.safetensors": b"other"}
    made = imported(store, "hf://me/small").artifact
    assert (made.name, made.kind) == ("small", "checkpoint")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    back = load(made.data).state_dict()
    assert all(torch.equal(back[name.removeprefix("model.")], tensor) for name, tensor in weights.items())
    assert {key for key, _ in hub.reads} == {"config.json", "generation_config.json", "model.safetensors"}
    assert imported(store, "hf://me/small@main").cached


def test_a_model_kept_as_pickles_is_refused_with_the_reason(hub: Bucket, store: Store) -> None:
    hub.files |= {"pytorch_model.bin": b"\x80\x02evil", "notes.txt": b"hello"}
    with pytest.raises(InputError, match="holds neither config.json nor safetensors") as caught:
        imported(store, "hf://me/small")
    assert "would run the code in it" in caught.value.hint
    assert hub.reads == []


def test_a_model_that_is_not_there_is_named(hub: Bucket, store: Store) -> None:
    hub.files["config.json"] = b"{}"
    with pytest.raises(InputError, match="me/nothing"):
        imported(store, "hf://me/nothing")
