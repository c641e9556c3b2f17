"""Configuration of rewards: what is asked of an answer, and with which weight."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from llmctl.config.base import Config, Pattern, digest_of, execution, parted
from llmctl.config.servers import ServerConfig


class _Reward(Config):
    """One reward of several."""

    weight: float = Field(default=1.0, description="what its value is multiplied by before all are added up")


class ExactReward(_Reward):
    """1 where the answer is the one wanted, white space around it apart."""

    kind: Literal["exact"] = Field(default="exact", description="which reward")
    ignore_case: bool = Field(default=False, description="whether case makes no difference")


class NumberReward(_Reward):
    """1 where the number behind the last `####`, or else the last number, equals that of the wanted answer (GSM8K)."""

    kind: Literal["number"] = Field(default="number", description="which reward")


class RegexReward(_Reward):
    """1 where a pattern is found."""

    kind: Literal["regex"] = Field(default="regex", description="which reward")
    pattern: Pattern = Field(min_length=1, max_length=10_000, description="of Python's re; searched for unless whole")
    whole: bool = Field(default=False, description="whether all of the answer must match")


class JsonReward(_Reward):
    """1 where the answer is one JSON value; with keys, an object that has them all."""

    kind: Literal["json"] = Field(default="json", description="which reward")
    keys: tuple[str, ...] = Field(default=(), description="that an object must have")


class LengthReward(_Reward):
    """0 up to `free` tokens, -1 from `most` on, straight between."""

    kind: Literal["length"] = Field(default="length", description="which reward")
    free: int = Field(default=0, ge=0, le=2**24, description="tokens that cost nothing")
    most: int = Field(ge=1, le=2**24, description="tokens from which on it is -1")

    @model_validator(mode="after")
    def _rises(self) -> LengthReward:
        if self.free >= self.most:
            raise ValueError(f"free ({self.free}) must be below most ({self.most})")
        return self


class RepetitionReward(_Reward):
    """Minus the share of n-grams of words that came before."""

    kind: Literal["repetition"] = Field(default="repetition", description="which reward")
    ngram_words: int = Field(default=3, ge=1, le=100, description="words of an n-gram")


class ScorerReward(_Reward):
    """The score of the reward model that is given as --scorer."""

    kind: Literal["scorer"] = Field(default="scorer", description="which reward")


class MathReward(_Reward):
    """1 where the answer equals the wanted one as mathematics, by math-verify (the extra `math`)."""

    kind: Literal["math"] = Field(default="math", description="which reward")


class TestsReward(_Reward):
    """1 where the program in the answer passes the tests in the column `tests` of the prompt's row, in the sandbox."""

    kind: Literal["tests"] = Field(default="tests", description="which reward")
    timeout_s: float = Field(default=3.0, gt=0, le=600, description="seconds that a program may run")


class GymReward(_Reward):
    """What reasoning-gym gives for the answer to one of its prompts (the extra `gym`)."""

    kind: Literal["gym"] = Field(default="gym", description="which reward")
    tag: str = Field(
        default="",
        pattern=r"^\w*$",
        description="what stands between the last <TAG> and </TAG> is judged; the whole answer where left out",
    )


JUDGE_TEMPLATE = """\
You grade an answer. What counts: {rubric}

The question:
{prompt}

The answer that is wanted, where one is known:
{answer}

The answer to grade:
{completion}

Think shortly, then end with a line "Score: N", where N is a number from {low} (worst) to {high} (best)."""


class JudgeReward(_Reward):
    """The score that a model behind an OpenAI-compatible server gives an answer, on a scale that is made 0 to 1."""

    kind: Literal["judge"] = Field(default="judge", description="which reward")
    url: str = Field(min_length=1, description="of the server, up to /v1")
    model: str = Field(default="", description="which of the server's models; its first where left out")
    key_variable: str = Field(default="", description="environment variable that holds the server's key")
    rubric: str = Field(
        default="whether it is right, complete and clear.", max_length=100_000, description="what counts"
    )
    template: str = Field(
        default=JUDGE_TEMPLATE,
        max_length=100_000,
        description="what the judge is told; {prompt}, {completion}, {answer}, {rubric}, {low}, {high} and "
        "{a column of the prompt's row} are filled in",
    )
    pattern: Pattern = Field(
        default=r"(?i)score\s*[:=]\s*\**\s*(-?\d+(?:\.\d+)?)",
        max_length=10_000,
        description="of Python's re, whose first group is the score; the last place where it is found counts",
    )
    scale: tuple[float, float] = Field(
        default=(0.0, 10.0), description="worst and best score, which become 0 and 1; a score beyond them is missing"
    )
    max_tokens: int = Field(default=512, ge=1, le=2**20, description="longest verdict")
    timeout_s: float = execution(60.0, gt=0, le=86_400, description="seconds that one request may take")
    at_once: int = execution(8, ge=1, le=1024, description="requests under way at a time")

    @field_validator("pattern")
    @classmethod
    def _has_a_group(cls, value: str) -> str:
        if re.compile(value).groups < 1:
            raise ValueError("needs a group that holds the score, such as Score: (\\d+)")
        return value

    @field_validator("scale")
    @classmethod
    def _rises(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError("the worst score must be below the best")
        return value

    @field_validator("template")
    @classmethod
    def _shows_the_answer(cls, value: str) -> str:
        if "{completion}" not in value:
            raise ValueError("must hold {completion}: the judge would not see the answer")
        return value

    @property
    def server(self) -> ServerConfig:
        """How it is reached."""
        return ServerConfig(url=self.url, name=self.model, key_variable=self.key_variable, timeout_s=self.timeout_s)


class FunctionReward(_Reward):
    """What a function of a Python file of your own gives."""

    kind: Literal["function"] = Field(default="function", description="which reward")
    of: str = Field(pattern=r"^.+\.py:[A-Za-z_]\w*$", description="file.py:function")
    sha256: str = Field(default="", description="of the file; filled in, so that an edited file is another run")

    @model_validator(mode="before")
    @classmethod
    def _of_these_bytes(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("of"), str):
            return given
        return {**given, "sha256": digest_of(given["of"].rpartition(":")[0], given.get("sha256"))}


RewardConfig = Annotated[
    ExactReward
    | NumberReward
    | RegexReward
    | JsonReward
    | LengthReward
    | RepetitionReward
    | ScorerReward
    | MathReward
    | TestsReward
    | JudgeReward
    | GymReward
    | FunctionReward,
    Field(discriminator="kind"),
]


def listed(value: Any) -> Any:
    """Rewards as blocks: a text names some, parted by commas; `file.py:function` names a function of one's own."""
    value = parted(value)
    if not isinstance(value, list | tuple):
        return value
    return [_block(one) if isinstance(one, str) else one for one in value]


def _block(name: str) -> dict[str, str]:
    return {"kind": "function", "of": name} if ".py:" in name else {"kind": name}
