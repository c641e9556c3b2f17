from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from llmctl.config.base import Config, execution, semantic_values
from llmctl.config.errors import ConfigError, InputError
from llmctl.config.load import build, environment_layer, merge, parse_overrides, parse_yaml, read_yaml, user_layer
from llmctl.pipeline.stages import STAGES
from llmctl.store.manifest import canonical


class Inner(Config):
    name: str = Field("adamw", description="which")
    lr: float = Field(1e-3, gt=0, description="rate")


class Outer(Config):
    steps: int = Field(10, ge=1, description="steps")
    workers: int = execution(2, ge=1, description="workers")
    inner: Inner = Field(default_factory=Inner, description="block")


def test_precedence_is_last_layer_first() -> None:
    built = build(Outer, [{"steps": 1, "inner": {"lr": 0.1}}, {"steps": 2}, {"inner": {"lr": 0.3}}])
    assert (built.steps, built.inner.lr, built.workers) == (2, 0.3, 2)


def test_yaml_1_2_numbers_and_booleans() -> None:
    assert parse_yaml("lr: 3e-4\nanswer: no\n", "x") == {"lr": 3e-4, "answer": "no"}


def test_duplicate_keys_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("a: 1\na: 2\n")
    with pytest.raises(ConfigError, match="duplicate"):
        read_yaml(path)


def test_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_yaml(tmp_path / "none.yaml")


def test_overrides_nest_and_keep_types() -> None:
    assert parse_overrides(["inner.lr=3e-4", "steps=5", "inner.name=sgd"]) == {
        "inner": {"lr": 3e-4, "name": "sgd"},
        "steps": 5,
    }


@given(st.lists(st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True), min_size=1, max_size=4), st.integers())
def test_override_round_trip(path: list[str], value: int) -> None:
    layer = parse_overrides([f"{'.'.join(path)}={value}"])
    for key in path:
        layer = layer[key]
    assert layer == value


def test_a_scalar_block_takes_further_fields() -> None:
    assert merge({"inner": "adamw"}, {"inner": {"lr": 1.0}}) == {"inner": {"name": "adamw", "lr": 1.0}}


def test_changing_the_name_replaces_the_block() -> None:
    assert merge({"inner": {"name": "adamw", "lr": 1.0}}, {"inner": {"name": "muon"}}) == {"inner": {"name": "muon"}}


def test_a_name_keeps_the_fields_of_an_unnamed_block() -> None:
    assert merge({"model": {"layers": 4}}, {"model": {"name": "tiny"}}) == {"model": {"layers": 4, "name": "tiny"}}
    assert merge({"model": {"name": "tiny", "layers": 4}}, {"model": "tiny"}) == {
        "model": {"name": "tiny", "layers": 4}
    }
    assert merge({"model": {"name": "tiny", "layers": 4}}, {"model": "nano"}) == {"model": {"name": "nano"}}


def test_all_faults_come_together_with_hints() -> None:
    with pytest.raises(ConfigError) as raised:
        build(Outer, [{"stepz": 3, "inner": {"lr": -1}, "workers": "many"}])
    by_place = {problem.where: problem for problem in raised.value.problems}
    assert set(by_place) == {"stepz", "inner.lr", "workers"}
    assert by_place["stepz"].hint == "did you mean steps?"
    assert "greater than 0" in by_place["inner.lr"].what


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999"])
def test_numbers_that_json_cannot_hold_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="finite number"):
        build(Outer, [parse_overrides([f"inner.lr={value}"])])


@given(st.integers())
def test_every_integer_that_is_taken_can_be_part_of_a_key(steps: int) -> None:
    try:
        config = build(Outer, [{"steps": steps}])
    except ConfigError:
        assert not 1 <= steps < 2**53
        return
    assert canonical(semantic_values(config)) == b'{"inner":{"lr":0.001,"name":"adamw"},"steps":%d}' % steps


def test_the_bound_of_integers_is_exact() -> None:
    assert build(Outer, [{"steps": 2**53 - 1}]).steps == 2**53 - 1
    with pytest.raises(ConfigError, match=r"steps: must lie between -2\^53 and 2\^53"):
        build(Outer, [{"steps": 2**53}])


@pytest.mark.parametrize(
    "command", [name for name, stage in STAGES.items() if "seed" in stage.config_model().model_fields]
)
def test_every_seed_can_be_part_of_a_key(command: str) -> None:
    model = STAGES[command].config_model()
    with pytest.raises(ConfigError, match="seed: Input should be less than"):
        build(model, [{"seed": 2**53}])
    assert canonical(semantic_values(build(model, [{"seed": 2**32 - 1}])))


def test_every_fault_of_the_overrides_is_told() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_overrides(["Steps", "a=[", "b={"])
    assert [problem.where for problem in raised.value.problems] == ["Steps", "a", "b"]


def test_environment_and_user_file(tmp_path: Path) -> None:
    assert environment_layer("pretrain", {"LLMCTL_PRETRAIN__INNER__LR": "1e-2", "LLMCTL_SFT__STEPS": "1"}) == {
        "inner": {"lr": 1e-2}
    }
    path = tmp_path / "config.yaml"
    path.write_text("pretrain:\n  steps: 7\n")
    assert user_layer("pretrain", path) == {"steps": 7}
    assert user_layer("sft", path) == {}


def test_execution_fields_are_not_semantic() -> None:
    assert (
        semantic_values(Outer(workers=1))
        == semantic_values(Outer(workers=9))
        == {
            "steps": 10,
            "inner": {"name": "adamw", "lr": 1e-3},
        }
    )
