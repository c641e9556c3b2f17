"""Configuration of the lessons made from documentation: chats, preferences and quiz."""

from __future__ import annotations

from pydantic import Field

from llmctl.config.base import INTEGER_LIMIT, Config
from llmctl.config.heldout import HELDOUT_FRACTION


class ChatsConfig(Config):
    """How documentation becomes question-and-answer chats."""

    heldout_fraction: float = Field(
        default=HELDOUT_FRACTION,
        ge=0,
        le=0.5,
        description="share of the documents, by id, whose chats are held out of training; the same as for pack",
    )
    seed: int = Field(default=1, ge=0, lt=INTEGER_LIMIT, description="seed of the choice of phrasings")
    phrasings: int = Field(
        default=2, ge=1, le=6, description="differently worded questions per entry and kind of question"
    )
    reverse: bool = Field(default=True, description="also ask which function does what is described")
    max_answer_words: int = Field(
        default=60, ge=5, le=1000, description="longest answer, in words; whole sentences are kept"
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="at most this many chats to learn from, and as many held out; all where left out",
    )


class PreferencesConfig(Config):
    """How documentation becomes pairs of a right answer and a wrong one."""

    heldout_fraction: float = Field(
        default=HELDOUT_FRACTION,
        ge=0,
        le=0.5,
        description="share of the documents, by id, whose pairs are held out of training; the same as for pack",
    )
    seed: int = Field(
        default=1, ge=0, lt=INTEGER_LIMIT, description="seed of the choice of phrasings and of wrong answers"
    )
    phrasings: int = Field(
        default=1, ge=1, le=6, description="differently worded questions per entry, each with a wrong answer of its own"
    )
    max_answer_words: int = Field(
        default=60, ge=5, le=1000, description="longest answer, in words; whole sentences are kept"
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="at most this many pairs to learn from, and as many held out; all where left out",
    )


class QuizConfig(Config):
    """How held-out documentation becomes multiple-choice questions."""

    heldout_fraction: float = Field(
        default=HELDOUT_FRACTION,
        gt=0,
        le=1,
        description="share of the documents, by id, asked about; the same as for chats and pack",
    )
    choices: int = Field(default=4, ge=2, le=10, description="summaries to choose from, one of them right")
    seed: int = Field(
        default=1, ge=0, lt=INTEGER_LIMIT, description="seed of the wrong choices and of the position of the right one"
    )
    per_document: int = Field(
        default=5, ge=1, description="at most this many questions on one document (a class and its methods)"
    )
    limit: int | None = Field(default=None, ge=1, description="at most this many questions; all where left out")
