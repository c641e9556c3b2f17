"""The steps of `clean` beside the rule sets: described fields, lists as words, limits that fit together."""

import pytest
from pydantic import BaseModel, ValidationError

from llmctl.config import clean_steps
from llmctl.config.classifier import ClassifierConfig
from llmctl.config.clean import CleanConfig
from llmctl.config.errors import ConfigError
from llmctl.config.load import build, parse_overrides

MODELS = [ClassifierConfig, *(value for name, value in vars(clean_steps).items() if name.endswith("Config"))]


@pytest.mark.parametrize("model", MODELS)
def test_every_field_is_described(model: type[BaseModel]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_lists_are_words_with_commas() -> None:
    config = build(CleanConfig, [parse_overrides(["language.keep=en, de", "pii.kinds=[email, key]", "pii.action=tag"])])
    assert config.language.keep == ("en", "de")
    assert config.language.enabled
    assert config.pii.kinds == ("email", "key")
    assert not CleanConfig().language.enabled


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("language.keep=english", "String should match"),
        ("pii.kinds=iris", "Input should be"),
        ("pii.kinds=[]", "at least 1"),
        ("boilerplate.min_documents=1", "greater than or equal to 2"),
        ("classifier.keep_quantile=0", "greater than 0"),
        ("segment.by=sentence", "'none', 'section' or 'paragraph'"),
    ],
)
def test_impossible_settings_are_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(CleanConfig, [parse_overrides([word])])


@pytest.mark.parametrize(
    "fields",
    [
        {"segment": {"min_characters": 10, "max_characters": 9}},
        {"perplexity": {"min_perplexity": 3, "max_perplexity": 2}},
        {"classifier": {"min_score": 0.5, "keep_quantile": 0.5}},
    ],
)
def test_limits_must_leave_something(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CleanConfig.model_validate(fields)
