"""Imports point down only, and starting up is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "llmctl"
TOP_DOWN = "cli serve objectives evals inference train model tokens data pipeline store config"
LAYERS = tuple(TOP_DOWN.split())
PEERS = {"transformers", "trl", "datatrove", "lm_eval", "peft", "litgpt", "vllm", "openai"}
HEAVY = {
    "torch",
    "numpy",
    "pyarrow",
    "pydantic",
    "rich",
    "sentencepiece",
    "datasketch",
    "deepspeed",
    "fastapi",
    "scipy",
    "matplotlib",
    "plotext",
    "tensorboard",
    "daft",
    "ray",
}
MAX_LINES = 400


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at any depth of nesting."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative imports hide the layer"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def printed_by(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_imports_point_down() -> None:
    upward = []
    for path in modules():
        layer = path.relative_to(PACKAGE).parts[0]
        if layer not in LAYERS:
            continue
        above = LAYERS[: LAYERS.index(layer)]
        upward += [
            f"{path}: {name}" for name in imports_of(path) if name.startswith(tuple(f"llmctl.{a}." for a in above))
        ]
    assert upward == []


def test_every_folder_is_a_layer() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == set(LAYERS)


def test_peers_are_never_imported() -> None:
    found = [f"{path}: {name}" for path in modules() for name in imports_of(path) if name.partition(".")[0] in PEERS]
    assert found == []


def test_data_and_tokens_do_without_torch() -> None:
    low = [p for p in modules() if p.relative_to(PACKAGE).parts[0] in ("data", "tokens", "pipeline", "store", "config")]
    assert [p for p in low if any(name.partition(".")[0] == "torch" for name in imports_of(p))] == []


def test_generating_and_serving_do_without_training() -> None:
    rooms = [p for p in modules() if p.relative_to(PACKAGE).parts[0] in ("model", "inference", "serve")]
    assert [p for p in rooms if any(name.startswith("llmctl.train") for name in imports_of(p))] == []


def test_files_are_short() -> None:
    long = {str(p): n for p in modules() if (n := len(p.read_text(encoding="utf-8").splitlines())) > MAX_LINES}
    assert long == {}


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['llmctl', '--help']\n"
        "from llmctl.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('LOADED', sorted(set(sys.modules) & {HEAVY!r}))"
    )
    said = printed_by(code)
    assert "pretrain" in said
    assert said.splitlines()[-1] == "LOADED []"


def test_a_cache_hit_needs_no_stage_code() -> None:
    code = (
        "import sys\n"
        "import llmctl.pipeline.execute, llmctl.cli.stage, llmctl.pipeline.receipts\n"
        "from llmctl.pipeline.stages import STAGES\n"
        "[stage.config_model() for stage in STAGES.values()]\n"
        "print(sorted(set(sys.modules) "
        "& {'torch', 'pyarrow', 'sentencepiece', 'datasketch', 'deepspeed', 'daft', 'ray'}))"
    )
    assert printed_by(code) == "[]"


def test_a_server_starts_without_what_only_training_asks_for() -> None:
    code = (
        "import sys\n"
        "import llmctl.cli.serve, llmctl.inference.conversation, llmctl.serve.app, llmctl.serve.running\n"
        "print(sorted(set(sys.modules) & {'llmctl.config.train', 'llguidance', 'pyarrow', 'pandas', 'gguf', 'scipy', "
        "'deepspeed', 'matplotlib', 'sympy', 'torch._dynamo', 'torch._inductor'}))"
    )
    assert printed_by(code) == "[]"
