"""Recipes: named steps in one YAML file, run in order through the cache (design §5)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmctl.config.base import Config
from llmctl.config.errors import ConfigError, LlmctlError, Problem, UsageError, together
from llmctl.config.load import Layer, build, environment_layer, parse_overrides, read_yaml, user_layer
from llmctl.pipeline.execute import Call, Outcome, execute, resolve_input
from llmctl.pipeline.job import Progress
from llmctl.pipeline.stage import Stage
from llmctl.pipeline.stages import STAGES
from llmctl.store.artifact import Input
from llmctl.store.layout import check_name
from llmctl.store.store import Store

STEP_ID = re.compile(r"[a-z][a-z0-9_]*")


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
    config: Config


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. `name` is the first part of every artifact that it makes (`demo.clean`)."""

    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Finished:
    """A step that has run."""

    step: Step
    outcome: Outcome


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
    name = written.name or path.stem
    try:
        check_name(f"{name}.{'x' * max(map(len, written.steps))}")
    except UsageError as error:
        where = "name" if written.name else f"the name of {path}"
        problems.append(Problem(where, f"{name!r} and a step make no artifact name", error.hint))
    steps: list[Step] = []
    for step_id, spec in written.steps.items():
        try:
            steps.append(_check_step(step_id, spec, extra.get(step_id), written, {s.id: s for s in steps}))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return Recipe(name, tuple(steps))


def _check_step(step_id: str, spec: StepSpec, override: Any, written: RecipeFile, earlier: Mapping[str, Step]) -> Step:
    where = f"steps.{step_id}"
    command = spec.uses or step_id
    if not STEP_ID.fullmatch(step_id):
        raise ConfigError([Problem(where, "is not a step name", "use lower-case letters, digits and _")])
    if command not in STAGES:
        raise ConfigError([Problem(f"{where}.uses", f"no stage is called {command!r}", f"known: {', '.join(STAGES)}")])
    stage = STAGES[command]
    refs = {"input": spec.inputs} if isinstance(spec.inputs, str) else dict(spec.inputs)
    refs = {stage.key(name): ref for name, ref in refs.items()}
    problems = [p for role, ref in refs.items() if (p := _check_input(stage, role, ref, step_id, written, earlier))]
    if override is not None and not isinstance(override, dict):
        problems.append(Problem(step_id, "names a step, not a field", f"write {step_id}.field=value"))
        override = None
    layers: list[Layer] = [user_layer(command), spec.settings, environment_layer(command), override or {}]
    config: Config | None = None
    try:
        config = build(stage.config_model(), layers, where=f"{where}.with.")
    except ConfigError as error:
        problems += error.problems
    problems += [
        Problem(f"{where}.in.{role}", "is missing", f"{command} needs {wanted.help}")
        for role, wanted in stage.inputs.items()
        if stage.lacks(role, refs, config)
    ]
    if problems or config is None:
        raise ConfigError(problems)
    return Step(step_id, stage, refs, config)


def _check_input(
    stage: Stage, role: str, ref: str, step_id: str, written: RecipeFile, earlier: Mapping[str, Step]
) -> Problem | None:
    """What is wrong with one `in` entry, as far as the recipe alone can tell."""
    where = f"steps.{step_id}.in.{role}"
    wanted = stage.role(role)
    if wanted is None:
        return Problem(where, "no such input", f"{stage.command} takes {', '.join(stage.inputs) or 'none'}")
    if ref in earlier:
        made, kinds = earlier[ref].stage.makes(earlier[ref].config), wanted.kinds
        return None if made in kinds else Problem(where, f"{ref} makes {made}, not {' or '.join(kinds)}")
    if ref in written.steps:
        return Problem(where, f"{ref} comes later", f"move {ref} above {step_id}")
    return None


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
    outside = outside_inputs(recipe, store)
    finished: dict[str, Finished] = {}
    for step in recipe.steps:
        on_start(step)
        made = {role: finished[ref].outcome.artifact for role, ref in step.refs.items() if ref in finished}
        name = f"{recipe.name}.{step.id}"
        call = Call(step.stage, step.config, {**made, **outside[step.id]}, name=name, force=force, argv=argv)
        with _named(step):
            finished[step.id] = Finished(step, execute(call, store, progress))
        on_finish(finished[step.id])
    return list(finished.values())


def outside_inputs(recipe: Recipe, store: Store) -> dict[str, dict[str, Input]]:
    """Inputs that no step makes, by step and role, found in the store or on the disk before anything runs.

    Raises:
        LlmctlError: with every one that is missing or of the wrong kind.
    """
    steps = {step.id for step in recipe.steps}
    found: dict[str, dict[str, Input]] = {step.id: {} for step in recipe.steps}
    faults: list[LlmctlError] = []
    for step in recipe.steps:
        for role, ref in step.refs.items():
            if ref in steps:
                continue
            try:
                with _named(step):
                    found[step.id][role] = resolve_input(ref, role, step.stage, store)
            except LlmctlError as error:
                faults.append(error)
    if faults:
        raise together(faults)
    return found


@contextlib.contextmanager
def _named(step: Step) -> Iterator[None]:
    """Say in which step an error arose."""
    try:
        yield
    except LlmctlError as error:
        error.what = f"step {step.id}: {error.what}"
        error.faults = tuple(f"step {step.id}: {fault}" for fault in error.faults)
        raise
