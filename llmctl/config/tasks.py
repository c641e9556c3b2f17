"""Tasks of an evaluation: what a task file may say, in the words of lm-evaluation-harness."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from llmctl.config.base import Config, Pattern, parted
from llmctl.config.load import build, read_yaml

OutputType = Literal["multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until"]
Aggregation = Literal["mean", "perplexity", "weighted_perplexity", "bits_per_byte"]
MetricName = Literal[
    "acc",
    "acc_norm",
    "acc_bytes",
    "acc_mutual_info",
    "mc2",
    "ece",
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
    "loss_by_position",
    "exact_match",
    "math_equal",
    "math_verify",
    "pass",
]
METRICS_OF: Mapping[OutputType, tuple[MetricName, ...]] = {
    "multiple_choice": ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "mc2", "ece"),
    "loglikelihood": ("acc", "perplexity"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte", "loss_by_position"),
    "generate_until": ("exact_match", "math_equal", "math_verify", "pass"),
}
AGGREGATIONS: Mapping[str, Aggregation] = {
    "perplexity": "perplexity",
    "word_perplexity": "weighted_perplexity",
    "byte_perplexity": "weighted_perplexity",
    "bits_per_byte": "bits_per_byte",
}
LOWER_IS_BETTER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "ece", "loss_by_position")
FILES = ".yaml", ".yml"


def _listed(value: Any) -> Any:
    """A single item as a list of it."""
    return [value] if isinstance(value, str | dict) else value


def _metrics(value: Any) -> Any:
    """`[acc]` for `[{metric: acc}]`."""
    value = _listed(value)
    return [{"metric": one} if isinstance(one, str) else one for one in value] if isinstance(value, list) else value


class MetricConfig(Config):
    """One figure of a task."""

    metric: MetricName = Field(description="what is measured")
    aggregation: Aggregation | None = Field(default=None, description="follows from the metric")
    higher_is_better: bool | None = Field(default=None, description="follows from the metric")
    ignore_case: bool = Field(default=False, description="exact_match: compare in lower case")
    ignore_punctuation: bool = Field(default=False, description="exact_match: compare without ASCII punctuation")
    ignore_numbers: bool = Field(default=False, description="exact_match: compare without ASCII digits")
    regexes_to_ignore: Annotated[tuple[Pattern, ...], BeforeValidator(_listed)] = Field(
        default=(), description="exact_match: patterns that are cut out of both sides first, in order"
    )
    k: int = Field(default=1, ge=1, le=10_000, description="pass: how many answers may be tried")

    @model_validator(mode="after")
    def _follows(self) -> MetricConfig:
        for field, follows in (
            ("aggregation", AGGREGATIONS.get(self.metric, "mean")),
            ("higher_is_better", self.metric not in LOWER_IS_BETTER),
        ):
            if getattr(self, field) not in (None, follows):
                raise ValueError(f"{field} of {self.metric} is {follows}: leave it out")
        return self

    @property
    def name(self) -> str:
        """What the figure is called: `acc`, `pass@10`."""
        return f"pass@{self.k}" if self.metric == "pass" else self.metric


class FilterStep(Config):
    """One step from a generated text to the answer in it."""

    function: Literal[
        "regex", "take_first", "take_first_k", "majority_vote", "lowercase", "uppercase", "remove_whitespace", "math"
    ] = Field(description="what is done; math takes what stands between the first and the last dollar sign")
    regex_pattern: Pattern = Field(default=r"#### (\-?[0-9\.\,]+)", description="regex: what to look for")
    group_select: int = Field(default=0, description="regex: which match; -1 for the last")
    fallback: str = Field(default="[invalid]", description="regex: the answer where nothing matches")
    k: int = Field(default=1, ge=1, description="take_first_k: how many answers to keep")


class FilterConfig(Config):
    """A way from the generated texts to what is compared; metrics are given once for each."""

    name: str = Field(description="what its figures are called by", pattern=r"^[a-zA-Z0-9_.-]+$")
    filter: tuple[FilterStep, ...] = Field(description="steps, in order")


class GenerationConfig(Config):
    """How a text is generated."""

    until: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        default=("\n\n",), description="strings that end the text and are no part of it"
    )
    do_sample: bool = Field(default=False, description="draw, instead of taking the likeliest token")
    temperature: float = Field(default=0.0, ge=0, le=100, description="divides the logits; 0 takes the likeliest token")
    top_p: float = Field(default=1.0, gt=0, le=1, description="draw among the fewest tokens that reach this sum")
    top_k: int = Field(default=0, ge=0, description="draw among so many likeliest tokens; 0 for all")
    max_gen_toks: int = Field(default=256, ge=1, le=1 << 20, description="most tokens of a text")

    @model_validator(mode="after")
    def _draws(self) -> GenerationConfig:
        if self.do_sample and self.temperature == 0:
            raise ValueError("do_sample needs a temperature above 0")
        return self


class FewshotConfig(Config):
    """Which examples stand before an item."""

    sampler: Literal["default", "first_n", "by_item"] = Field(
        default="default",
        description="default: drawn anew for every item; first_n: always the first ones; by_item: drawn from the "
        "other items with the seed and the item's place, as nanochat draws them",
    )
    samples: tuple[dict[str, Any], ...] = Field(default=(), description="the examples themselves, in place of a split")


class BudgetConfig(Config):
    """How many tokens a text may take, and what becomes of one that has not ended by then."""

    tokens: tuple[Annotated[int, Field(ge=1, le=1 << 20)], ...] = Field(
        default=(), description="budgets, in place of max_gen_toks; every figure is at the largest"
    )
    cue: str = Field(default="", description="written behind a text that its budget cuts, so that the answer follows")
    answer_tokens: int = Field(default=16, ge=1, le=4096, description="most tokens of the answer behind the cue")

    @field_validator("tokens")
    @classmethod
    def _ascend(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))


class CheckConfig(Config):
    """Generated texts that are run: what a verifier is told. Texts are templates over the item."""

    kind: Literal["code"] = Field(default="code", description="who checks: code runs the text in the sandbox")
    program: str = Field(default="{{completion}}", description="the program, over the item and `completion`")
    test: str = Field(description="what it must pass")
    entry_point: str = Field(default="", description="the function that is tested; empty where the test says it")
    setup: str = Field(default="", description="trusted source that the test needs: imports, helpers")
    reference: str = Field(default="", description="a right program: it tells which names are the program's")
    timeout_s: float = Field(default=3.0, gt=0, le=3600, description="how long one program may run")


class HaystackConfig(Config):
    """Items that are made: one sentence hidden in a long text, and a question about it."""

    lengths_tokens: tuple[int, ...] = Field(default=(512, 1024, 2048), description="lengths of the text")
    depths: tuple[float, ...] = Field(
        default=(0.0, 0.25, 0.5, 0.75, 1.0), description="where the sentence stands, 0 to 1"
    )
    repeats: int = Field(default=2, ge=1, le=1000, description="items of each length and depth")
    needle: str = Field(
        default="The secret number of {{city}} is {{number}}.", description="the sentence, over `city` and `number`"
    )


class TaskConfig(Config):
    """One task. Templates are Jinja over the fields of an item; a bare field name stands for its value."""

    task: str = Field(description="its name", pattern=r"^[a-zA-Z0-9_-]+$")
    description: str = Field(default="", description="template of what stands before everything")
    output_type: OutputType = Field(default="generate_until", description="what is asked of the model")
    test_split: str | None = Field(default=None, description="name of the split that is asked")
    validation_split: str | None = Field(default=None, description="the same where there is no test_split")
    training_split: str | None = Field(default=None, description="split that examples are drawn from")
    fewshot_split: str | None = Field(default=None, description="the same, before training_split")
    by: str = Field(default="", description="field that parts the items into subtasks, each with its own examples")
    doc_to_text: str = Field(default="", description="template of the prompt; multiple_inputs: of the right index")
    doc_to_target: str | int = Field(default="", description="template of the answer, or the index of the choice")
    doc_to_choice: str | tuple[str, ...] | None = Field(
        default=None, description="template of a list, or list of templates"
    )
    doc_to_original: str = Field(default="", description="rolling: the text whose words and bytes count")
    multiple_inputs: bool = Field(default=False, description="choices are prompts, doc_to_target follows each")
    scored: Literal["continuation", "apart"] = Field(
        default="continuation",
        description="continuation: the sum over what follows the prompt; apart: by nanochat's rules, the mean over "
        "the tokens that the choices do not share (multiple_inputs: that they share at their end)",
    )
    target_delimiter: str = Field(default=" ", description="between a prompt and its answer")
    fewshot_delimiter: str = Field(default="\n\n", description="between examples")
    num_fewshot: int = Field(default=0, ge=0, le=1000, description="examples before each item")
    fewshot_config: FewshotConfig = Field(default=FewshotConfig(), description="which examples")
    metric_list: Annotated[tuple[MetricConfig, ...], BeforeValidator(_metrics)] = Field(
        min_length=1, description="what is measured"
    )
    filter_list: tuple[FilterConfig, ...] = Field(default=(), description="from generated texts to what is compared")
    generation_kwargs: GenerationConfig = Field(default=GenerationConfig(), description="how texts are generated")
    repeats: int = Field(default=1, ge=1, le=10_000, description="texts for each item")
    budget: BudgetConfig = Field(default=BudgetConfig(), description="tokens of each text")
    check: CheckConfig | None = Field(default=None, description="run the generated texts")
    haystack: HaystackConfig | None = Field(default=None, description="make the items from a long text")
    chance: float | None = Field(
        default=None, ge=0, lt=1, description="score of guessing, where it does not follow from choices"
    )
    shuffle_seed: int | None = Field(
        default=None, ge=0, description="put the items in a random order before any limit; None keeps theirs"
    )
    version: str | int | float = Field(default=1, description="to be raised when figures would change")

    @model_validator(mode="after")
    def _fits(self) -> TaskConfig:
        known = METRICS_OF[self.output_type]
        for metric in self.metric_list:
            if metric.metric not in known:
                raise ValueError(f"{self.output_type} has no metric {metric.metric}; it has {', '.join(known)}")
        if self.output_type == "multiple_choice" and self.doc_to_choice is None:
            raise ValueError("multiple_choice needs doc_to_choice")
        if self.scored == "apart":
            self._check_apart()
        if (self.check is None) != all(metric.metric != "pass" for metric in self.metric_list):
            raise ValueError("check and the metric pass go together")
        if (most := max(metric.k for metric in self.metric_list)) > self.repeats:
            raise ValueError(f"pass@{most} needs at least {most} texts of each item, and repeats is {self.repeats}")
        return self

    def _check_apart(self) -> None:
        if self.output_type not in ("multiple_choice", "loglikelihood"):
            raise ValueError(f"{self.output_type} has no choices to tell apart: leave scored out")
        if other := [one.name for one in self.metric_list if one.metric != "acc"]:
            raise ValueError(f"scored: apart gives acc alone, not {', '.join(other)}")

    @property
    def pool(self) -> str | None:
        """The split that examples are drawn from; None for the items themselves."""
        if self.fewshot_split is not None:
            return None if self.fewshot_split == self.tested else self.fewshot_split
        return self.training_split

    @property
    def leaves_out(self) -> bool:
        """Whether the harness draws one example more and drops the item, if it is among them.

        It does so too where the file names no test_split and the examples are of another split.
        """
        return self.fewshot_split == self.test_split

    @property
    def tested(self) -> str | None:
        """The split that is asked, where the file names one."""
        return self.test_split or self.validation_split


class AggregateConfig(Config):
    """How the figures of a group's tasks become one."""

    metric: MetricName = Field(description="which figure of each task")
    weight_by_size: bool = Field(default=True, description="weigh each task by its items; otherwise all count alike")
    centred: bool = Field(default=False, description="first map each figure so that guessing is 0 and all right is 1")


class GroupConfig(Config):
    """Several tasks under one name."""

    group: str = Field(description="its name", pattern=r"^[a-zA-Z0-9_-]+$")
    task: tuple[str | TaskConfig, ...] = Field(min_length=1, description="names or files of its tasks")
    aggregate_metric_list: tuple[AggregateConfig, ...] = Field(default=(), description="figures of the whole group")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not isinstance(value.get("task"), list | tuple):
            return value
        return {**value, "task": [read_task(one) for one in value["task"]]}

    @property
    def tasks(self) -> tuple[TaskConfig, ...]:
        """Its tasks, read."""
        return tuple(one for one in self.task if isinstance(one, TaskConfig))


AnyTask = TaskConfig | GroupConfig


def shipped() -> list[str]:
    """Names of the tasks and groups that come with llmctl."""
    return sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml"))


def _folder() -> Traversable:
    return resources.files("llmctl.config") / "benchmarks"


def read_tasks(value: Any) -> Any:
    """What `tasks` is given as, names and files separated by commas or listed, read into mappings."""
    value = parted(value)
    return [read_task(one) for one in value] if isinstance(value, Sequence) else value


def read_task(given: Any) -> Any:
    """The configuration that a name or a path of a file stands for; anything else as it is.

    Raises:
        ValueError: there is no such task, or the file holds no mapping.
    """
    if isinstance(given, dict):
        return _checked(given, str(given.get("group", given.get("task", "a task"))))
    if not isinstance(given, str):
        return given
    if given.endswith(FILES):
        where, content = given, read_yaml(Path(given).expanduser())
    else:
        names = shipped()
        if given not in names:
            close = difflib.get_close_matches(given, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}, or a .yaml file"
            raise ValueError(f"no task is called {given!r}; {hint}")
        with resources.as_file(_folder() / f"{given}.yaml") as path:
            where, content = given, read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{where} is no task file: it holds no mapping")  # noqa: TRY004 - pydantic reports ValueError
    return _checked(content, where)


def _checked(content: dict[str, Any], where: str) -> AnyTask:
    if "group" in content:
        return build(GroupConfig, [content], where=f"{where}: ")
    return build(TaskConfig, [content], where=f"{where}: ")
