import pytest
from pydantic import BaseModel, ValidationError

from llmctl.config.base import semantic_values
from llmctl.config.clean import CleanConfig
from llmctl.config.collect import CollectConfig
from llmctl.config.decontaminate import DecontaminateConfig
from llmctl.config.dedup import DedupConfig
from llmctl.config.errors import ConfigError
from llmctl.config.heldout import HELDOUT_FRACTION
from llmctl.config.lessons import ChatsConfig, QuizConfig
from llmctl.config.load import build, parse_overrides
from llmctl.config.rules import C4Config, CodeConfig, FineWebConfig, QualityConfig, RepetitionConfig
from llmctl.config.tokens import PackConfig
from llmctl.config.train import SftConfig

MODELS = (
    CollectConfig, QualityConfig, RepetitionConfig, C4Config, FineWebConfig, CodeConfig, CleanConfig, DedupConfig,
    DecontaminateConfig, ChatsConfig, QuizConfig,
)  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_every_field_is_described(model: type[BaseModel]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_the_papers_thresholds_are_the_defaults() -> None:
    """Rae et al. 2021 (section A.1.1, table A1), Raffel et al. 2020, Penedo et al. 2024, The Stack 1 and 2."""
    assert QualityConfig().model_dump() == {
        "enabled": True, "min_words": 50, "max_words": 100_000, "min_mean_word_length": 3.0,
        "max_mean_word_length": 10.0, "max_hash_ratio": 0.1, "max_ellipsis_ratio": 0.1, "max_bullet_lines": 0.9,
        "max_ellipsis_lines": 0.3, "min_alphabetic_words": 0.8, "min_stop_words": 2,
    }  # fmt: skip
    assert RepetitionConfig().model_dump() == {
        "enabled": True, "max_duplicate_paragraphs": 0.30, "max_duplicate_paragraph_characters": 0.20,
        "max_duplicate_lines": 0.30, "max_duplicate_line_characters": 0.20,
        "max_top_ngram_characters": {2: 0.20, 3: 0.18, 4: 0.16}, "min_top_ngram_count": 1,
        "max_duplicate_ngram_characters": {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
    }  # fmt: skip
    assert C4Config().model_dump() == {
        "enabled": False, "terminal_punctuation": True, "max_word_length": 1000, "min_line_words": 3,
        "remove_citations": True, "drop_javascript_lines": True, "drop_policy_lines": True, "drop_lorem_ipsum": True,
        "drop_curly_brackets": True, "min_sentences": 5,
    }  # fmt: skip
    assert FineWebConfig().model_dump() == {
        "enabled": False, "min_punctuated_lines": 0.12, "max_short_lines": 0.67, "short_line_characters": 30,
        "max_duplicate_line_characters": 0.01, "max_newlines_per_word": 0.3,
    }  # fmt: skip
    assert CodeConfig().model_dump(exclude={"languages"}) == {
        "enabled": False, "max_lines": 100_000, "max_mean_line_length": 100, "max_line_length": 1000,
        "min_alphanumeric": 0.25, "min_alphabetic": 0.25, "generated_marker_lines": 5, "max_encoded_run": 1024,
        "max_encoded": 0.5,
    }  # fmt: skip


def test_rules_are_changed_and_switched_off_by_override() -> None:
    words = ["quality.min_words=5", "quality.min_stop_words=null", "repetition.enabled=false",
             "repetition.max_top_ngram_characters={2: 0.5}"]  # fmt: skip
    config = build(CleanConfig, [parse_overrides(words)])
    assert config.quality.min_words == 5
    assert config.quality.min_stop_words is None
    assert config.quality.max_words == 100_000
    assert not config.repetition.enabled
    assert config.repetition.max_top_ngram_characters == {2: 0.5}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("quality.min_words=200000", "above max_words"),
        ("quality.min_mean_word_length=11", "above max_mean_word_length"),
        ("quality.min_word=1", "did you mean min_words?"),
        ("repetition.max_duplicate_lines=1.5", "less than or equal to 1"),
        ("repetition.max_top_ngram_characters={0: 0.5}", "n-gram length"),
        ("html=maybe", "'auto', 'always' or 'never'"),
    ],
)
def test_impossible_rules_are_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(CleanConfig, [parse_overrides([word])])


def test_where_sources_lie_is_not_semantic() -> None:
    here, there = (
        CollectConfig(sources=sources, limit=3, workers=workers) for sources, workers in ((("a",), 1), (("b",), 2))
    )
    assert semantic_values(here) == semantic_values(there)
    assert semantic_values(here)["limit"] == 3
    network = {"sources", "workers", "engine", "ray_address", "allow_private", "max_download_bytes", "timeout_s"}
    assert set(semantic_values(here)) == set(CollectConfig.model_fields) - network


@pytest.mark.parametrize(("model", "field", "value"), [
    (DedupConfig, "unit", "word"), (DedupConfig, "keep", ""), (DecontaminateConfig, "ngram_words", 7),
    (DecontaminateConfig, "fields", ()), (DedupConfig, "threshold", 1.1),
    (DedupConfig, "permutations", 1), (DedupConfig, "seed", -1),
    (ChatsConfig, "phrasings", 7), (ChatsConfig, "heldout_fraction", 0.9),
    (QuizConfig, "heldout_fraction", 0), (QuizConfig, "choices", 1), (CollectConfig, "limit", 0),
])  # fmt: skip
def test_bounds(model: type[BaseModel], field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        model.model_validate({field: value})


def test_the_stages_that_split_documents_hold_out_the_same_share() -> None:
    configs = (PackConfig(), ChatsConfig(), QuizConfig(), SftConfig())
    assert [config.heldout_fraction for config in configs] == [HELDOUT_FRACTION] * 4
