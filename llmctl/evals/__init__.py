"""Measuring checkpoints."""

from llmctl.evals.stage import run

__all__ = ["run"]
