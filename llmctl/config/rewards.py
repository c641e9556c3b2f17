"""Configuration of rewards: what is asked of an answer, and with which weight."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from llmctl.config.base import Config, compiled, digest_of


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
    pattern: str = Field(min_length=1, max_length=10_000, description="of Python's re; searched for unless whole")
    whole: bool = Field(default=False, description="whether all of the answer must match")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return compiled(value)


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
    | FunctionReward,
    Field(discriminator="kind"),
]


def listed(value: Any) -> Any:
    """Rewards as blocks: a text names some, parted by commas; `file.py:function` names a function of one's own."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        return value
    return [_block(one) if isinstance(one, str) else one for one in value]


def _block(name: str) -> dict[str, str]:
    return {"kind": "function", "of": name} if ".py:" in name else {"kind": name}
