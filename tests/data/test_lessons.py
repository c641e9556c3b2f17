from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from llmctl.config.collect import CollectConfig
from llmctl.config.dedup import DedupConfig
from llmctl.config.errors import InputError
from llmctl.config.lessons import ChatsConfig, PreferencesConfig, QuizConfig
from llmctl.config.tokens import PackConfig
from llmctl.data import collect, dedup
from llmctl.data.lessons import run_chats, run_preferences, run_quiz
from llmctl.data.lessons.documentation import Entry, entries, read_entries, summary_sentences
from llmctl.data.split import is_heldout
from llmctl.data.tables import read_rows
from llmctl.pipeline.job import FileFacts
from llmctl.store.artifact import Artifact
from llmctl.store.card import render_card
from tests.data.conftest import rows_of

JOIN = (
    "os.path.join(a, *p)\n\nJoin two or more pathname components, inserting '/' as needed.\nIf any component is an "
    "absolute path, e.g. one that\nbegins with a slash, all previous ones go.\n\nMore."
)
STACK = (
    "class queues.Stack(items: list[int] = (), /)\n\nA last-in, first-out store.\n\n"
    "Stack.pop(self, count=1)\n\nRemove and return the newest item.\n\nStack.push(self, /, item)\n\n"
    "S.push(item) -> None.  put an item on top\n\nStack.size\n\n>>> Stack().size\n0"
)


def parsed(document_id: str, text: str) -> list[Entry]:
    return list(entries(document_id, text, "python-docs"))


def test_a_function() -> None:
    (entry,) = parsed("python-docs/os.path.join", JOIN)
    assert (entry.kind, entry.name, entry.call) == ("function", "os.path.join", "os.path.join(a, *p)")
    assert entry.sentences == (
        "Join two or more pathname components, inserting '/' as needed.",
        "If any component is an absolute path, e.g. one that begins with a slash, all previous ones go.",
    )
    assert entry.names_itself()
    assert entry.first_sentences(9) == entry.summary
    assert entry.first_sentences(100) == " ".join(entry.sentences)


def test_a_class_and_its_methods() -> None:
    found = parsed("python-docs/queues.Stack", STACK)
    assert [(e.id, e.kind, e.name, e.call, e.summary) for e in found] == [
        (
            "python-docs/queues.Stack", "class", "queues.Stack", "queues.Stack(items: list[int] = (), /)",
            "A last-in, first-out store.",
        ),
        (
            "python-docs/queues.Stack#pop", "function", "queues.Stack.pop", "queues.Stack.pop(count=1)",
            "Remove and return the newest item.",
        ),
        (
            "python-docs/queues.Stack#push", "function", "queues.Stack.push", "queues.Stack.push(item)",
            "Put an item on top.",
        ),
    ]  # fmt: skip
    assert {e.document for e in found} == {"python-docs/queues.Stack"}


@pytest.mark.parametrize(
    ("document_id", "text"),
    [
        ("python-docs/topic/assert", "The assert statement\n\nAssert statements are handy."),
        ("python-docs/dist/numpy", "numpy 2.4.6\n\nFundamental package for array computing."),
        ("python-docs/other", JOIN),
        ("notes/a.md", "just prose"),
        ("notes/a.md", ""),
    ],
)
def test_other_documents_have_no_entries(document_id: str, text: str) -> None:
    assert parsed(document_id, text) == []


@pytest.mark.parametrize(
    ("docstring", "sentences"),
    [
        ("Return x.", ()),  # says nothing
        ("D.get(k[,d]) -> D[k] if k in D, else d.", ()),
        ("sleep(seconds)\n\nDelay execution for a number of seconds.", ("Delay execution for a number of seconds.",)),
        ("split(sep) -> list of str\nSplit at each separator.  Then stop", ("Split at each separator.", "Then stop.")),
        (">>> f(1)\n2", ()),
        ("-----\nA table follows here", ()),
        ("Use one of these:\n\n* a", ()),
        ("Do this, i.e. that one, by J. Doe. And more.", ("Do this, i.e. that one, by J. Doe.", "And more.")),
        ("compute   the\nsum of two", ("Compute the sum of two.",)),
        ("This is deprecated, use the other one.", ()),
    ],
)
def test_summaries(docstring: str, sentences: tuple[str, ...]) -> None:
    assert summary_sentences(docstring) == sentences


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The documentation of this interpreter, collected and deduplicated."""
    from llmctl.pipeline.job import Job, Silent
    from tests.data.conftest import artifact_of, unused

    given = None
    for body, config in ((collect.run, CollectConfig(sources=("python-docs",))), (dedup.run, DedupConfig())):
        directory = tmp_path_factory.mktemp("corpus")
        job = Job(
            config=config, inputs={} if given is None else {"input": given}, out=directory / "data",
            work=directory / "work", metrics_file=directory / "metrics.jsonl", progress=Silent(), nested=unused,
        )  # fmt: skip
        given = artifact_of(directory, body(job))
    assert given is not None
    return given


def test_no_chat_is_about_a_held_out_entry(corpus: Artifact, stage: Callable) -> None:
    product, artifact = stage(run_chats, ChatsConfig(heldout_fraction=0.1), corpus)
    chats = rows_of(artifact)
    assert len(chats) == product.totals["chats"] > 5_000
    assert len({chat["id"] for chat in chats}) == len(chats)
    documents = {chat["document"] for chat in chats}
    assert documents == {chat["id"].partition("?")[0].partition("#")[0] for chat in chats}
    assert not [name for name in documents if is_heldout(name, 0.1)]
    assert product.semantic == {"heldout_fraction": 0.1}
    held_out = {e.name for e in read_entries(corpus) if is_heldout(e.document, 0.1)}
    questions = [chat["messages"][0]["content"] for chat in chats if "?which" not in chat["id"]]
    assert not [q for q in questions if q.split("`")[1] in held_out]
    for chat in chats:
        assert [message["role"] for message in chat["messages"]] == ["user", "assistant"]
        assert all(message["content"].strip() for message in chat["messages"])


def test_held_out_chats_are_a_split_of_their_own(corpus: Artifact, stage: Callable) -> None:
    product, artifact = stage(run_chats, ChatsConfig(heldout_fraction=0.1, limit=300), corpus)
    assert product.files == {
        "part-00000.parquet": FileFacts(rows=300, split="train"),
        "heldout-00000.parquet": FileFacts(rows=300, split="heldout"),
    }
    assert (product.totals["chats"], product.totals["heldout_chats"]) == (300, 300)
    kept, held = list(read_rows(artifact)), list(read_rows(artifact, "heldout"))
    assert (len(kept), len(held)) == (300, 300)
    assert not any(is_heldout(chat["document"], 0.1) for chat in kept)
    assert all(is_heldout(chat["document"], 0.1) for chat in held)
    files = [e.model_copy(update={"split": product.files[e.path[5:]].split}) for e in artifact.manifest.files]
    manifest = artifact.manifest.model_copy(update={"files": files})
    assert "- split: heldout\n    path:\n    - data/heldout-00000.parquet\n" in render_card(manifest, "lessons")
    none, artifact = stage(run_chats, ChatsConfig(heldout_fraction=0), corpus)
    assert list(none.files) == ["part-00000.parquet"]
    assert list(read_rows(artifact, "heldout")) == []


def test_a_quiz_with_the_defaults_asks_nothing_that_the_defaults_train_on(corpus: Artifact, stage: Callable) -> None:
    product, artifact = stage(run_quiz, QuizConfig(), corpus)
    assert product.semantic["heldout_fraction"] == PackConfig().heldout_fraction == ChatsConfig().heldout_fraction
    asked = {row["id"].partition("#")[0] for row in rows_of(artifact)}
    assert [name for name in asked if not is_heldout(name, PackConfig().heldout_fraction)] == []


def test_the_chats_of_one_function(documents: Callable, stage: Callable) -> None:
    given = documents([
        {"id": "python-docs/os.path.glue", "text": JOIN.replace("os.path.join", "os.path.glue")},
        {"id": "python-docs/queues.Stack", "text": STACK},
    ])  # fmt: skip
    _, artifact = stage(run_chats, ChatsConfig(heldout_fraction=0.0, phrasings=1, max_answer_words=12), given)
    chats = {row["id"]: [m["content"] for m in row["messages"]] for row in rows_of(artifact)}
    assert list(chats) == sorted(chats)
    assert "`os.path.glue`" in chats["python-docs/os.path.glue?what-0"][0]
    assert (
        chats["python-docs/os.path.glue?what-0"][1] == "Join two or more pathname components, inserting '/' as needed."
    )
    assert chats["python-docs/os.path.glue?call"][1] == "`os.path.glue(a, *p)`"
    assert chats["python-docs/os.path.glue?which"][1] == "`os.path.glue`"
    assert "Join two or more pathname" in chats["python-docs/os.path.glue?which"][0]
    assert chats["python-docs/queues.Stack#pop?call"][1] == "`queues.Stack.pop(count=1)`"


def test_the_quiz_asks_only_held_out_entries(corpus: Artifact, stage: Callable) -> None:
    product, artifact = stage(run_quiz, QuizConfig(heldout_fraction=0.1), corpus)
    rows = rows_of(artifact)
    by_id = {entry.id: entry for entry in read_entries(corpus)}
    learned = {e.summary for e in by_id.values() if not is_heldout(e.document, 0.1)}
    assert len(rows) == product.totals["questions"] >= 200
    for row in rows:
        entry = by_id[row["id"]]
        assert is_heldout(entry.document, 0.1)
        assert row["prompt"] == f"Question: {row['question']}\nAnswer:"
        assert f"`{entry.name}`" in row["question"]
        assert len(row["choices"]) == len(set(row["choices"])) == 4
        assert row["choices"][row["answer"]] == f" {entry.summary}"
        assert entry.short_name.lower() not in entry.summary.lower().split()
        assert entry.summary not in learned
    per_document = Counter(by_id[row["id"]].document for row in rows)
    assert max(per_document.values()) <= QuizConfig().per_document


def test_the_answer_cannot_be_guessed_from_position_or_length(corpus: Artifact, stage: Callable) -> None:
    _, artifact = stage(run_quiz, QuizConfig(heldout_fraction=0.3), corpus)
    rows = rows_of(artifact)
    assert len(rows) > 600

    def share_right(guess: Callable[[Sequence[str]], int]) -> float:
        return sum(guess(row["choices"]) == row["answer"] for row in rows) / len(rows)

    for position in range(4):
        assert 0.19 < share_right(lambda _, position=position: position) < 0.31
    for most in (max, min):
        assert 0.19 < share_right(lambda choices, most=most: most(range(4), key=lambda i: len(choices[i]))) < 0.31


def test_preferences_differ_in_what_they_are_about_and_in_nothing_else(corpus: Artifact, stage: Callable) -> None:
    config = PreferencesConfig(heldout_fraction=0.1)
    product, artifact = stage(run_preferences, config, corpus)
    sides = {split: list(read_rows(artifact, split)) for split in ("train", "heldout")}
    assert product.semantic == {"heldout_fraction": 0.1}
    assert [len(rows) for rows in sides.values()] == [
        product.totals["preferences"],
        product.totals["heldout_preferences"],
    ]
    by_id = {entry.id: entry for entry in read_entries(corpus)}
    answers = {split: {row["chosen"][0]["content"] for row in rows} for split, rows in sides.items()}
    assert not answers["train"] & answers["heldout"]
    for split, rows in sides.items():
        assert len(rows) > 200
        for row in rows:
            entry = by_id[row["id"].partition("?")[0]]
            assert is_heldout(row["document"], 0.1) == (split == "heldout")
            assert f"`{entry.name}`" in row["prompt"][0]["content"]
            assert row["chosen"] == [{"role": "assistant", "content": entry.first_sentences(60)}]
            assert row["rejected"][0]["content"] in answers[split]
            assert row["rejected"] != row["chosen"]
    longer = [len(row["rejected"][0]["content"]) - len(row["chosen"][0]["content"]) for row in sides["train"]]
    assert abs(sum(longer)) / len(longer) < 0.5  # characters: no length tells which one is right
    assert sum(map(abs, longer)) / len(longer) < 2


def test_phrasings_and_limit_of_preferences(corpus: Artifact, stage: Callable) -> None:
    config = PreferencesConfig(heldout_fraction=0.1, phrasings=2, limit=40)
    rows = rows_of(stage(run_preferences, config, corpus)[1])
    assert len(rows) == 40
    assert rows == rows_of(stage(run_preferences, config, corpus)[1])
    everything = rows_of(stage(run_preferences, config.model_copy(update={"limit": None}), corpus)[1])
    of_one = [row for row in everything if row["id"].partition("?")[0] == everything[0]["id"].partition("?")[0]]
    assert len(of_one) == 2
    assert of_one[0]["prompt"] != of_one[1]["prompt"]
    assert of_one[0]["rejected"] != of_one[1]["rejected"]


def test_one_answer_has_no_wrong_one_beside_it(documents: Callable, stage: Callable) -> None:
    given = documents([{"id": "python-docs/os.path.join", "text": JOIN}])
    with pytest.raises(InputError, match="none of 1 entries to learn from has another"):
        stage(run_preferences, PreferencesConfig(heldout_fraction=0.0), given)


def test_seed_limit_and_choices(corpus: Artifact, stage: Callable) -> None:
    def quiz(**fields: int) -> list[dict[str, object]]:
        return rows_of(stage(run_quiz, QuizConfig(heldout_fraction=0.1, **fields), corpus)[1])

    first = quiz(limit=50)
    assert first == quiz(limit=50)
    assert len(first) == 50
    assert [row["id"] for row in first] == sorted(str(row["id"]) for row in first)
    assert [row["answer"] for row in quiz(seed=2)] != [row["answer"] for row in quiz(seed=1)]
    assert {len(row["choices"]) for row in quiz(choices=2, limit=20)} == {2}
    chats = rows_of(stage(run_chats, ChatsConfig(limit=30), corpus)[1])
    assert len(chats) == 30


def test_prose_gives_no_lessons(documents: Callable, stage: Callable) -> None:
    given = documents([{"id": "a.txt", "text": "Once upon a time."}])
    for body, config in (
        (run_chats, ChatsConfig()),
        (run_preferences, PreferencesConfig()),
        (run_quiz, QuizConfig()),
    ):
        with pytest.raises(InputError, match="holds no reference documentation"):
            stage(body, config, given)


def test_all_held_out_or_none(documents: Callable, stage: Callable) -> None:
    given = documents([{"id": "python-docs/os.path.join", "text": JOIN}])
    with pytest.raises(InputError, match="none of 1 held-out entries makes a question"):
        stage(run_quiz, QuizConfig(heldout_fraction=1.0), given)
