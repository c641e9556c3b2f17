from __future__ import annotations

from pathlib import Path

import pytest

from llmctl.config.errors import ConfigError, InputError
from llmctl.pipeline.job import Silent
from llmctl.pipeline.recipe import outside_inputs, read_recipe, run_recipe
from llmctl.store.store import Store

REPOSITORY = Path(__file__).parents[2]

GOOD = """
version: 1
steps:
  collect:
    with: {{sources: ['{folder}']}}
  tidy:
    uses: clean
    in: collect
    with: {{quality: {{enabled: false}}, repetition: {{enabled: false}}}}
  dedup: {{in: tidy}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"Note {i % 3} says that data flows through the house.\n")
    return folder


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return path


def test_steps_run_in_order_through_the_cache(tmp_path: Path, folder: Path, store: Store) -> None:
    recipe = read_recipe(written(tmp_path, GOOD.format(folder=folder)))
    first = run_recipe(recipe, store, Silent())
    assert [f.outcome.artifact.ref for f in first] == ["small.collect@v1", "small.tidy@v1", "small.dedup@v1"]
    assert first[-1].outcome.artifact.manifest.totals["documents"] == 3
    second = run_recipe(recipe, store, Silent())
    assert [f.outcome.cached for f in second] == [True, True, True]
    changed = read_recipe(written(tmp_path, GOOD.format(folder=folder)), ("dedup.threshold=0.9",))
    assert [f.outcome.cached for f in run_recipe(changed, store, Silent())] == [True, True, False]


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    text = """
version: 1
steps:
  collect: {}
  clean:
    in: later
    with: {qualty: {}}
  tidy: {uses: clean, in: collect}
  later:
    uses: colect
  dedup:
    in: {inpt: clean}
    with: {treshold: 1}
  pack:
    in: tidy
    with: {seq_len: 1}
"""
    with pytest.raises(ConfigError) as raised:
        read_recipe(written(tmp_path, text), ("nostep.x=1",))
    found = {(problem.where, problem.what.split(",")[0]) for problem in raised.value.problems}
    assert {where for where, _ in found} == {
        "nostep",
        "steps.clean.in.input",
        "steps.later.uses",
        "steps.clean.with.qualty",
        "steps.dedup.in.inpt",
        "steps.dedup.in.input",
        "steps.dedup.with.treshold",
        "steps.pack.in.input",
        "steps.pack.with.seq_len",
    }
    assert ("steps.pack.in.input", "tidy makes documents") in found
    assert ("steps.clean.in.input", "later comes later") in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: {}", "version"),
        ("version: 1\nsteps: {}", "steps"),
        ("version: 2\nsteps: {collect: {}}", "version"),
        ("version: 1\nstep: {collect: {}}", "step"),
        ("version: 1\nversion: 1\nsteps: {}", "duplicate"),
        ("version: [1", "YAML"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_recipe(written(tmp_path, text))


def test_a_failing_step_is_named_and_earlier_ones_stay(tmp_path: Path, store: Store) -> None:
    (tmp_path / "one.txt").write_text("too short")
    text = (
        f"version: 1\nsteps:\n  collect: {{with: {{sources: ['{tmp_path / 'one.txt'}']}}}}\n  clean: {{in: collect}}\n"
    )
    with pytest.raises(InputError, match="step clean: "):
        run_recipe(read_recipe(written(tmp_path, text)), store, Silent())
    assert store.names() == ["small.collect"]


@pytest.mark.parametrize(
    ("name", "fits"), [("web", True), ("w" * 113, True), ("w" * 114, False), ("a b", False), ("../x", False)]
)
def test_the_name_is_checked_with_the_recipe(tmp_path: Path, name: str, fits: bool) -> None:
    path = written(tmp_path, f"version: 1\nname: '{name}'\nsteps:\n  collect_it_all: {{uses: collect}}\n")
    if fits:
        assert read_recipe(path).name == name
        return
    with pytest.raises(ConfigError, match="name: .* make no artifact name"):
        read_recipe(path)


def test_a_file_name_that_is_no_name_is_found_too(tmp_path: Path) -> None:
    path = tmp_path / "my recipe.yaml"
    path.write_text("version: 1\nsteps:\n  later:\n    uses: colect\n")
    with pytest.raises(ConfigError) as raised:
        read_recipe(path)
    assert [problem.where for problem in raised.value.problems] == [f"the name of {path}", "steps.later.uses"]


def test_every_missing_input_is_told_before_anything_runs(tmp_path: Path, folder: Path, store: Store) -> None:
    text = GOOD.format(folder=folder) + "  more: {uses: dedup, in: nope}\n  most: {uses: dedup, in: none@v2}\n"
    recipe = read_recipe(written(tmp_path, text))
    with pytest.raises(InputError) as raised:
        run_recipe(recipe, store, Silent())
    assert [fault[:46] for fault in raised.value.faults] == [
        "step more: no artifact is called 'nope' in " + str(store.root)[:3],
        "step most: no artifact is called 'none' in " + str(store.root)[:3],
    ]
    assert store.names() == []
    with pytest.raises(InputError, match="step more: .*; step most: "):
        outside_inputs(recipe, Store.expected(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_recipes_are_valid(path: Path) -> None:
    assert read_recipe(path).steps
