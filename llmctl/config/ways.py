"""Ways in which `synth` makes data: what of each can be chosen, and in which words a teacher is asked."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from llmctl.config.base import Config, Pattern, digest_of

NEW_TASK = """Here are some tasks:

{tasks}

Write one new task that is unlike all of these. Write the task alone, without its solution."""
ASK = """{passage}

Write one question that the text above answers. It must make sense to a reader who does not have the text. Write the \
question alone."""
ANSWER = """{passage}

{question}
Answer from the text above alone."""
THINK = "Think step by step, and end with #### and the answer."


def _holds(*places: str) -> AfterValidator:
    """A text that has these places to be filled in."""

    def check(value: str) -> str:
        if missing := [place for place in places if place not in value]:
            raise ValueError(f"has no {missing[0]} to be filled in")
        return value

    return AfterValidator(check)


MostSimilar = Annotated[
    float | None,
    Field(
        gt=0,
        le=1,
        description="A new question goes whose ROUGE-L with one that is there reaches this; null keeps them all.",
    ),
]


class _Way(Config):
    """One way.

    `asks` says which inputs it takes, any one of them; `compares`, whether a row is made of two answers, whose rewards
    are held against one another.
    """

    asks: ClassVar[tuple[str, ...]] = ("prompts", "chats")
    writes: ClassVar[str] = "chats"
    compares: ClassVar[bool] = False

    @property
    def output(self) -> str:
        """Kind of what is made."""
        return self.writes


class AnswersConfig(_Way):
    """Answers to the prompts that are given."""

    name: Literal["answers"] = Field(default="answers", description="what is made, and how")


class ThoughtsConfig(_Way):
    """Answers that think first, of which those stay that rewards confirm (STaR, arXiv:2203.14465)."""

    name: Literal["thoughts"] = Field(default="thoughts", description="what is made, and how")
    think: str = Field(
        THINK, min_length=1, max_length=20_000, description="Put behind the question where `instruction` is empty."
    )


class SelfInstructConfig(_Way):
    """New tasks after the pattern of those given, and answers to them (Self-Instruct, arXiv:2212.10560)."""

    name: Literal["self_instruct"] = Field(default="self_instruct", description="what is made, and how")
    times: int = Field(100, ge=1, le=10**7, description="How often the teacher is asked for new tasks.")
    shown: int = Field(6, ge=1, le=64, description="Tasks that it is shown each time.")
    shown_new: int = Field(2, ge=0, le=64, description="How many of these are its own, once there are as many.")
    most_similar: MostSimilar = 0.7
    prompt: Annotated[str, _holds("{tasks}")] = Field(
        NEW_TASK, max_length=20_000, description="How it is asked; {tasks} is their list."
    )

    @model_validator(mode="after")
    def _shows_some_given(self) -> SelfInstructConfig:
        if self.shown_new >= self.shown:
            raise ValueError(f"shown_new ({self.shown_new}) leaves no given task among the {self.shown} shown")
        return self


class QuestionsConfig(_Way):
    """Questions that a passage of a document answers, and answers from that passage."""

    asks: ClassVar[tuple[str, ...]] = ("documents",)

    name: Literal["questions"] = Field(default="questions", description="what is made, and how")
    passage_words: int = Field(200, ge=1, le=100_000, description="Longest passage, in words; paragraphs stay whole.")
    least_passage_words: int = Field(20, ge=1, description="Shorter passages are not asked about.")
    per_passage: int = Field(1, ge=1, le=1024, description="Questions asked for on each passage.")
    form: Pattern = Field(r"\?$", max_length=10_000, description="Pattern of Python's re that a question must hold.")
    most_similar: MostSimilar = 0.7
    least_grounded: float = Field(
        0.5, ge=0, le=1, description="Least share of an answer's words that must stand in the passage."
    )
    keep_passage: bool = Field(False, description="Leave the passage before the question in what is written.")
    prompt: Annotated[str, _holds("{passage}")] = Field(
        ASK, max_length=20_000, description="How a question is asked for; {passage} is the passage."
    )
    answer: Annotated[str, _holds("{passage}", "{question}")] = Field(
        ANSWER, max_length=20_000, description="How it is answered, with {passage} and {question}."
    )


class PreferencesWayConfig(_Way):
    """The best of several answers to a prompt over the worst of them, by rewards."""

    writes: ClassVar[str] = "preferences"
    compares: ClassVar[bool] = True

    name: Literal["preferences"] = Field(default="preferences", description="what is made, and how")
    least_margin: float = Field(0.0, ge=0, description="The two must differ in their rewards by more than this.")


class RevisionsConfig(_Way):
    """Answers that the teacher criticises and writes anew by principles of a file (arXiv:2212.08073)."""

    name: Literal["revisions"] = Field(default="revisions", description="what is made, and how")
    constitution: str = Field(
        min_length=1,
        description="File of principles: one a line, or a .yaml or .json list of texts or of {critique, revise}.",
    )
    sha256: str = Field(default="", description="of the file; filled in, so that an edited file is another run")
    rounds: int = Field(
        1, ge=1, le=64, description="How often an answer is criticised, each time by another principle."
    )
    write: Literal["chats", "preferences"] = Field(
        "chats", description="The last answer, or a preference for it over the first."
    )

    @property
    def output(self) -> str:
        """Kind of what is made."""
        return self.write

    @model_validator(mode="before")
    @classmethod
    def _of_these_bytes(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("constitution"), str):
            return given
        return {**given, "sha256": digest_of(given["constitution"], given.get("sha256"))}


AnyWay = AnswersConfig | ThoughtsConfig | SelfInstructConfig | QuestionsConfig | PreferencesWayConfig | RevisionsConfig
WayConfig = Annotated[AnyWay, Field(discriminator="name")]
