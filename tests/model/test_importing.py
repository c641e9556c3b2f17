"""`import` and `export` through the pipeline: what goes in comes out, and what is broken is named."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmctl.config.errors import InputError, IntegrityError, LlmctlError, UsageError
from llmctl.config.inout import ExportConfig, ImportConfig
from llmctl.config.model import ModelConfig
from llmctl.config.tokens import TokenizerConfig
from llmctl.inference.engine import Engine
from llmctl.inference.request import Request
from llmctl.model.attention import packed
from llmctl.model.exporting import Exported, export
from llmctl.model.huggingface import load, save
from llmctl.model.transformer import Transformer
from llmctl.pipeline.execute import Call, Outcome, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stages import stage_named
from llmctl.store.store import Store
from llmctl.tokens.tokenizer import Tokenizer
from tests.tokenizers import write_tokenizer

VOCAB = 300
TOKENS = torch.randint(0, VOCAB, (2, 33), generator=torch.Generator().manual_seed(0))
TEXTS = ["the quick brown fox jumps over the lazy dog. " * 20, "pack my box with five dozen liquor jugs! " * 20]


class Notes(Silent):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def logits_of(model: Transformer) -> torch.Tensor:
    rows, length = TOKENS.shape
    with torch.no_grad():
        return model.logits(model(TOKENS, torch.arange(length).expand(rows, length), packed(torch.zeros(rows, length))))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), TEXTS, TokenizerConfig(vocab_size=VOCAB))


@pytest.fixture
def model() -> Transformer:
    made = Transformer(ModelConfig(name="nano"), VOCAB)
    made.init_weights(0)
    return made


@pytest.fixture
def folder(tmp_path: Path, model: Transformer, tokenizer: Path) -> Path:
    save(model, tmp_path / "base-model", tokenizer)
    return tmp_path / "base-model"


def imported(store: Store, source: Path, notes: Notes | None = None, **fields: Any) -> Outcome:
    config = ImportConfig(sources=(str(source),), **fields)
    return execute(Call(stage_named("import"), config, {}), store, notes or Notes())


def exported(store: Store, ref: str, target: Path, **fields: Any) -> Exported:
    return export(store.resolve(ref), ExportConfig(to=(str(target),), **fields), Silent())


def test_a_folder_becomes_a_checkpoint_with_its_tokenizer(store: Store, folder: Path, model: Transformer) -> None:
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    made = imported(store, folder).artifact
    assert (made.ref, made.kind) == ("base-model@v1", "checkpoint")
    assert torch.equal(logits_of(load(made.data)), logits_of(model))
    facts = made.manifest.semantic
    assert (facts["architecture"], facts["vocab_size"], facts["seq_len"]) == ("LlamaForCausalLM", VOCAB, 512)
    assert facts["parameters"] == made.manifest.totals["parameters"] == model.parameters_count()
    assert facts["chat"] is True
    assert made.manifest.license == ["Apache-2.0"]
    ours, theirs = Tokenizer.open(made.data), Tokenizer.open(folder)
    assert ours.encode(TEXTS[0]) == theirs.encode(TEXTS[0])
    assert ours.chat_template == theirs.chat_template
    generation = json.loads((folder / "generation_config.json").read_text())
    assert json.loads((made.data / "generation_config.json").read_text()) == generation


def test_the_same_bytes_come_from_the_cache_wherever_they_lie(store: Store, folder: Path, tmp_path: Path) -> None:
    first = imported(store, folder)
    folder.rename(tmp_path / "elsewhere")
    again = imported(store, tmp_path / "elsewhere")
    assert (first.cached, again.cached) == (False, True)
    assert again.artifact.digest == first.artifact.digest
    assert not imported(store, tmp_path / "elsewhere", dtype="bf16").cached


def test_weights_are_rounded_on_demand_and_kept_in_shards(store: Store, folder: Path, model: Transformer) -> None:
    made = imported(store, folder, dtype="bf16", shard_bytes=300_000).artifact
    assert load(made.data).dtype == torch.bfloat16
    kept = imported(store, folder, shard_bytes=300_000).artifact
    assert sorted(path.name for path in kept.files(suffix=".safetensors")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert torch.equal(logits_of(load(kept.data)), logits_of(model))


@pytest.mark.parametrize(("dtype", "within"), [("keep", 0.0), ("fp16", 2e-3), ("bf16", 2e-2), ("q8_0", 2e-2)])
def test_through_gguf_and_back(
    store: Store, folder: Path, model: Transformer, tmp_path: Path, dtype: str, within: float
) -> None:
    imported(store, folder)
    done = exported(store, "base-model", tmp_path / "small.gguf", dtype=dtype)
    assert (done.format, done.architecture) == ("gguf", "llama")
    assert done.bytes == (tmp_path / "small.gguf").stat().st_size
    back = imported(store, tmp_path / "small.gguf").artifact
    assert back.name == "small"
    difference = (logits_of(load(back.data, dtype=torch.float32)) - logits_of(model)).abs().max().item()
    assert difference <= within * 10
    assert json.loads((back.data / "config.json").read_text())["bos_token_id"] == 1


def test_an_exported_folder_is_what_transformers_opens(
    store: Store, folder: Path, model: Transformer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    imported(store, folder)
    done = exported(store, "base-model", tmp_path / "out", shard_bytes=300_000)
    assert (done.format, done.architecture, done.dtype) == ("hf", "LlamaForCausalLM", "fp32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        assert (theirs(TOKENS).logits - logits_of(model)).abs().max().item() < 1e-4
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = Tokenizer.open(folder)
    assert reader(TEXTS[0], add_special_tokens=False).input_ids == ours.encode(TEXTS[0])
    assert reader.chat_template == ours.chat_template
    assert theirs.generation_config.eos_token_id == list(ours.stop_ids)


def test_a_model_of_several_experts_keeps_its_family(store: Store, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MistralConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=VOCAB, sliding_window=None,
    )  # fmt: skip
    transformers.MistralForCausalLM(config).save_pretrained(tmp_path / "mistral")
    notes = Notes()
    made = imported(store, tmp_path / "mistral", notes).artifact
    assert made.manifest.semantic["architecture"] == "MistralForCausalLM"
    assert notes.told == ["there is no tokenizer: the checkpoint takes ids alone"]


def test_nothing_is_written_over(store: Store, folder: Path, tmp_path: Path) -> None:
    imported(store, folder)
    (tmp_path / "there.gguf").write_bytes(b"mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_bytes(b"mine")
    for target in ("there.gguf", "full"):
        with pytest.raises(UsageError, match="is there already"):
            exported(store, "base-model", tmp_path / target)
    with pytest.raises(UsageError, match="q8_0 is a format of gguf alone"):
        exported(store, "base-model", tmp_path / "new", dtype="q8_0")
    with pytest.raises(UsageError, match="needs a place"):
        export(store.resolve("base-model"), ExportConfig(), Silent())
    assert (tmp_path / "there.gguf").read_bytes() == b"mine"
    assert not (tmp_path / "new").exists()


class Canary:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_code_of_the_folder_runs(store: Store, folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    notes = Notes()
    made = imported(store, folder, notes).artifact
    assert "the model brings code of its own (auto_map), which is not run: what it computes is ours" in notes.told
    names = {path.name for path in made.data.iterdir()}
    assert not names & {"modeling_evil.py", "pytorch_model.bin"}
    assert "auto_map" not in (made.data / "config.json").read_text()
    assert not canary.exists()


def edited(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def renamed(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"model.norm.weight": [1.0] * 64}))


def unknown(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"]}))


Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
FAULTS: list[tuple[Callable[[Path], object], type[LlmctlError], str]] = [
    (pickled, InputError, "pytorch_model.bin, a pickle: opening it would run the code in it"),
    (renamed, InputError, "model.safetensors is a pickle"),
    (unknown, InputError, "MambaForCausalLM.*which is not known here"),
    (lambda f: (f / "config.json").unlink(), InputError, "config.json does not exist"),
    (lambda f: edited(f, lambda t: t[Q_PROJ].fill_(float("nan"))), IntegrityError, Q_PROJ + " holds NaN"),
    (lambda f: edited(f, lambda t: t.pop(Q_PROJ)), IntegrityError, "lacks the tensor " + Q_PROJ),
    (lambda f: edited(f, lambda t: t.update({Q_PROJ: t[Q_PROJ].int()})), InputError, Q_PROJ + " is of a type that"),
    (
        lambda f: edited(f, lambda t: t.update({Q_PROJ: t[Q_PROJ][:9]})),
        IntegrityError,
        Q_PROJ + r" has shape \[9, 64\]",
    ),
]


@pytest.mark.parametrize(("fault", "error", "says"), FAULTS, ids=[says for _, _, says in FAULTS])
def test_what_is_broken_is_named_and_publishes_nothing(
    store: Store, folder: Path, fault: Callable[[Path], object], error: type[LlmctlError], says: str
) -> None:
    fault(folder)
    with pytest.raises(error, match=says):
        imported(store, folder)
    assert store.names() == []


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.pt", pickle.dumps([1]), "is a pickle"),
        ("model.pth", b"anything", "model.pth, a pickle"),
        ("model.bin", b"PK\x03\x04....", "is a pickle"),
        ("notes.txt", b"hello", "is neither a .gguf file nor a tokenizer"),
        ("x.gguf", b"GGUF\x07\x00\x00\x00", "version is 7"),
        ("x.gguf", b"hello", "does not begin with GGUF"),
    ],
)
def test_files_that_are_no_model_are_told_why(
    store: Store, tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        imported(store, tmp_path / name)


def test_a_source_that_is_not_there_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        imported(store, tmp_path / "nowhere")
    with pytest.raises(UsageError, match="import needs a source"):
        execute(Call(stage_named("import"), ImportConfig(), {}), store, Silent())
    with pytest.raises(UsageError, match="https://example.org/model is not imported"):
        imported(store, "https://example.org/model")  # type: ignore[arg-type]


PEAK = """
import re, sys
from pathlib import Path
from llmctl.config.inout import ExportConfig, ImportConfig
from llmctl.model import exporting, importing
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stages import stage_named
from llmctl.store.store import Store
store = Store.open(sys.argv[2], create=True)
def peak(): # of this process alone: what getrusage tells begins with that of the parent
    return int(re.search("VmHWM: *([0-9]+)", Path("/proc/self/status").read_text().replace("\t", " "))[1]) * 1024
before = peak()
config = ImportConfig(sources=(sys.argv[1],), shard_bytes=32 << 20)
execute(Call(stage_named("import"), config, {}, "big"), store, Silent())
print(peak() - before)
"""


def test_memory_stays_below_the_size_of_the_file(tmp_path: Path) -> None:
    """One parameter is mapped at a time, and one is written."""
    shape = {"width": 512, "layers": 12, "heads": 8, "kv_heads": 8, "ffn_width": 1536, "context": 64}
    model = Transformer(ModelConfig.model_validate({"name": "nano", **shape}), 8000)
    model.init_weights(0)
    save(model, tmp_path / "model", None)
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert size > 150e6
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to see the peak of memory")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "model"), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) < size


def byte_level_folder(directory: Path, rows: int) -> Path:
    """What transformers writes of a small Llama with a byte-level tokenizer and more rows than ids."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers, trainers

    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=special, initial_alphabet=alphabet)
    fast.train_from_iterator(TEXTS, trainer)
    named = {"eos_token": special[2], "bos_token": special[0], "pad_token": special[0]}
    reader = transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **named)
    reader.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    reader.save_pretrained(directory)
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, vocab_size=rows,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config)
    made.generation_config.temperature = 0.7
    made.generation_config.do_sample = True
    made.save_pretrained(directory)
    return directory


def test_a_tokenizer_of_others_its_template_and_its_settings_go_both_ways(store: Store, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = byte_level_folder(tmp_path / "theirs", rows=300)
    made = imported(store, folder).artifact
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.open(made.data)
    text = "The lazy dog's 12 jugs!\n\n  ünïcödé 漢字"
    assert ours.encode(text) == reader(text).input_ids
    assert ours.decode(ours.encode(text)) == text
    assert ours.chat_template == reader.chat_template
    assert (ours.vocab_size, made.manifest.semantic["vocab_size"]) == (280, 300)
    assert made.manifest.semantic["chat"] is True

    exported(store, "theirs", tmp_path / "hf")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert again(text).input_ids == reader(text).input_ids
    assert again.chat_template == reader.chat_template
    settings = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert (settings["temperature"], settings["eos_token_id"]) == (0.7, 2)

    exported(store, "theirs", tmp_path / "theirs.gguf", dtype="fp32")
    back = imported(store, tmp_path / "theirs.gguf")
    through = Tokenizer.open(back.artifact.data)
    assert through.encode(text) == ours.encode(text)
    assert through.chat_template == ours.chat_template
    assert (through.eos_id, through.vocab_size) == (2, 300)


def test_ids_beyond_the_tokenizer_stand_for_nothing(store: Store, tmp_path: Path) -> None:
    made = imported(store, byte_level_folder(tmp_path / "theirs", rows=300)).artifact
    with Engine.open(made.data) as engine:
        assert engine.tokenizer.vocab_size == 300
        assert engine.tokenizer.piece_bytes(299) == b""
        done = engine.generate([Request([1, 2, 3], max_tokens=8, temperature=0.0, stop_ids=())])
    assert len(done[0].token_ids) == 8


def test_a_tokenizer_alone_becomes_a_tokenizer(store: Store, tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path / "theirs", rows=300)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    (folder / "generation_config.json").unlink()
    for source in (folder, folder / "tokenizer.json"):
        made = imported(store, source).artifact
        assert (made.kind, made.name) == ("tokenizer", source.name.removesuffix(".json"))
        assert Tokenizer.open(made.data).chat_template
        assert made.manifest.semantic["vocab_size"] == 280


def test_a_model_with_fewer_rows_than_ids_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the tokenizer has 280 ids, the model 200"):
        imported(store, byte_level_folder(tmp_path / "theirs", rows=200))
