"""Recipes: named steps in one YAML file, run in order through the cache (design §5)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmctl.config.errors import ConfigError, LlmctlError, Problem
from llmctl.config.load import Layer, build, environment_layer, parse_overrides, read_yaml, user_layer
from llmctl.pipeline.execute import Call, Outcome, execute, resolve_inputs
from llmctl.pipeline.job import Progress
from llmctl.pipeline.stage import Stage
from llmctl.pipeline.stages import STAGES
from llmctl.store.artifact import Input
from llmctl.store.store import Store

STEP_ID = re.compile(r"^[a-z][a-z0-9_]*$")


class StepSpec(BaseModel):
    """One step as written: `{uses: dedup, in: …, with: {…}}`. `in` names earlier steps, artifacts or files."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    uses: str = ""
    inputs: str | dict[str, str] = Field(default_factory=dict, alias="in")
    settings: dict[str, Any] = Field(default_factory=dict, alias="with")


class RecipeFile(BaseModel):
    """The file as written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1]
    name: str = ""
    description: str = ""
    steps: dict[str, StepSpec] = Field(min_length=1)


@dataclass(frozen=True)
class Step:
    """One step, checked: its stage exists, its configuration is valid, its earlier steps are earlier."""

    id: str
    stage: Stage
    refs: Mapping[str, str]
    call_config: Any


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. `name` is the first part of every artifact that it makes (`demo.clean`)."""

    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Finished:
    """A step that has run, with the seconds that it took."""

    step: Step
    outcome: Outcome
    seconds: float


def read_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read and check a recipe; every fault in it is in one `ConfigError`.

    Args:
        path: the YAML file.
        overrides: `step.field=value` words from the command line.
    """
    content = read_yaml(path)
    try:
        written = RecipeFile.model_validate(content)
    except ValidationError as error:
        faults = [Problem(f"{path}: " + ".".join(map(str, f["loc"])), f["msg"]) for f in error.errors()]
        raise ConfigError(faults) from None
    extra = parse_overrides(overrides)
    problems = [
        Problem(key, "no such step", f"steps: {', '.join(written.steps)}") for key in extra if key not in written.steps
    ]
    steps: list[Step] = []
    for step_id, spec in written.steps.items():
        try:
            steps.append(_check_step(step_id, spec, extra.get(step_id), written, [s.id for s in steps]))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return Recipe(written.name or path.stem, tuple(steps))


def _check_step(step_id: str, spec: StepSpec, override: Any, written: RecipeFile, earlier: list[str]) -> Step:
    where = f"steps.{step_id}"
    command = spec.uses or step_id
    if not STEP_ID.match(step_id):
        raise ConfigError([Problem(where, "is not a step name", "use lower-case letters, digits and _")])
    if command not in STAGES:
        raise ConfigError([Problem(f"{where}.uses", f"no stage is called {command!r}", f"known: {', '.join(STAGES)}")])
    stage = STAGES[command]
    refs = {"input": spec.inputs} if isinstance(spec.inputs, str) else dict(spec.inputs)
    problems = [
        Problem(f"{where}.in.{role}", "no such input", f"{command} takes {', '.join(stage.inputs) or 'none'}")
        for role in refs
        if role not in stage.inputs
    ]
    problems += [
        Problem(f"{where}.in.{role}", f"{ref} comes later", f"move {ref} above {step_id}")
        for role, ref in refs.items()
        if ref in written.steps and ref not in earlier
    ]
    if override is not None and not isinstance(override, dict):
        problems.append(Problem(step_id, "names a step, not a field", f"write {step_id}.field=value"))
    if problems:
        raise ConfigError(problems)
    layers: list[Layer] = [user_layer(command), spec.settings, environment_layer(command), override or {}]
    config = build(stage.config_model(), layers, where=f"{where}.with.")
    return Step(step_id, stage, refs, config)


def run_recipe(
    recipe: Recipe,
    store: Store,
    progress: Progress,
    *,
    force: bool = False,
    argv: tuple[str, ...] = (),
    on_start: Callable[[Step], None] = lambda _step: None,
    on_finish: Callable[[Finished], None] = lambda _finished: None,
) -> list[Finished]:
    """Run the steps in order; what is in the cache is not run again.

    Raises:
        LlmctlError: of the first step that fails, with the step named; earlier steps stay published.
    """
    finished: dict[str, Finished] = {}
    for step in recipe.steps:
        on_start(step)
        start = time.monotonic()
        try:
            inputs = _step_inputs(step, store, finished)
            call = Call(step.stage, step.call_config, inputs, name=f"{recipe.name}.{step.id}", force=force, argv=argv)
            outcome = execute(call, store, progress)
        except LlmctlError as error:
            error.what = f"step {step.id}: {error.what}"
            raise
        finished[step.id] = Finished(step, outcome, time.monotonic() - start)
        on_finish(finished[step.id])
    return list(finished.values())


def _step_inputs(step: Step, store: Store, finished: Mapping[str, Finished]) -> dict[str, Input]:
    """Inputs that earlier steps made, and those that the store or the disk holds."""
    made: dict[str, Input] = {
        role: finished[ref].outcome.artifact for role, ref in step.refs.items() if ref in finished
    }
    outside = {role: ref for role, ref in step.refs.items() if ref not in finished}
    return resolve_inputs(step.stage, outside, store, made)
