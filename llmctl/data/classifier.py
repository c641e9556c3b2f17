"""The stage `classifier`: a fastText model that tells good documents from others, for `clean --classifier`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmctl.config.classifier import ClassifierConfig
from llmctl.config.errors import InputError
from llmctl.data.clean.fasttext_model import one_line
from llmctl.data.clean.quality_classifier import NEGATIVE, POSITIVE
from llmctl.data.split import is_heldout
from llmctl.data.tables import read_batches
from llmctl.pipeline.job import Job, Product
from llmctl.store.files import explained

MODEL_FILE = "model.bin"
TRAIN, HELDOUT = "train", "heldout"


def run(job: Job[ClassifierConfig]) -> Product:
    """Train on one line a document, and measure on the documents that were held out by their id."""
    import fasttext

    config = job.config
    counts = _write_lines(job)
    for label in (POSITIVE, NEGATIVE):
        if not counts[TRAIN, label]:
            raise InputError(f"there is no {label} document to train on", hint="give documents that hold text")
    job.progress.note(f"{counts[TRAIN, POSITIVE]:,} positive and {counts[TRAIN, NEGATIVE]:,} negative documents")
    job.out.mkdir(parents=True, exist_ok=True)
    model = fasttext.train_supervised(
        str(job.work / TRAIN),
        dim=config.dimensions,
        wordNgrams=config.ngram_words,
        bucket=config.buckets if config.ngram_words > 1 else 0,
        epoch=config.epochs,
        lr=config.lr,
        minCount=config.min_count,
        seed=config.seed % 2**31,  # a C int
        thread=1,  # with more, the model depends on their timing
        verbose=0,
    )
    path = job.out / MODEL_FILE
    with explained(str(path)):
        model.save_model(str(path))
    totals: dict[str, int | float | str] = {
        "documents": sum(counts.values()),
        "positive": counts[TRAIN, POSITIVE],
        "negative": counts[TRAIN, NEGATIVE],
        "heldout": counts[HELDOUT, POSITIVE] + counts[HELDOUT, NEGATIVE],
        "words": len(model.get_words()),
        "model_bytes": path.stat().st_size,
        **_measured(model, job.work / HELDOUT),
    }
    job.log({"stage": "classifier", **totals})
    semantic = {"max_characters": config.max_characters, "labels": [POSITIVE, NEGATIVE]}
    return Product("llmctl.classifier/1", semantic=semantic, totals=totals)


def _write_lines(job: Job[ClassifierConfig]) -> Counter[tuple[str, str]]:
    """Write both splits as fastText reads them; the number of documents by split and label."""
    config = job.config
    counts: Counter[tuple[str, str]] = Counter()
    job.work.mkdir(parents=True, exist_ok=True)
    with (
        explained(str(job.work)),
        open(job.work / TRAIN, "w", encoding="utf-8") as train,
        open(job.work / HELDOUT, "w", encoding="utf-8") as heldout,
    ):
        for role, label in (("input", POSITIVE), ("negative", NEGATIVE)):
            for batch in read_batches(job.inputs[role], ["id", "text"]):
                pairs = zip(batch.column("id").to_pylist(), batch.column("text").to_pylist(), strict=True)
                for document_id, text in pairs:
                    if line := one_line(text, config.max_characters):
                        apart = is_heldout(document_id, config.heldout_fraction)
                        (heldout if apart else train).write(f"__label__{label} {line}\n")
                        counts[HELDOUT if apart else TRAIN, label] += 1
    return counts


def _measured(model: Any, path: Path) -> dict[str, float]:
    """Accuracy and the area under the ROC curve on held-out lines; nothing where a kind is missing there."""
    with open(path, encoding="utf-8") as lines:
        pairs = [line.rstrip("\n").partition(" ")[::2] for line in lines]
    truth = np.array([label == f"__label__{POSITIVE}" for label, _ in pairs], dtype=bool)
    if not truth.any() or truth.all():
        return {}
    labels, certain = model.predict([text for _, text in pairs], k=1)
    positive = np.array([bool(found) and found[0] == f"__label__{POSITIVE}" for found in labels])
    scores = np.array([float(p[0]) if len(p) else 0.0 for p in certain])
    scores = np.where(positive, scores, 1.0 - scores)
    return {"heldout_accuracy": float((positive == truth).mean()), "heldout_auc": area_under_roc(scores, truth)}


def area_under_roc(scores: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_]) -> float:
    """The chance that a positive scores above a negative, ties counting half (Mann-Whitney U by mean ranks)."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]  # the mean rank, from 1, of equal scores
    positives = int(truth.sum())
    surplus = ranks[truth].sum() - positives * (positives + 1) / 2
    return float(surplus / (positives * (len(truth) - positives)))
