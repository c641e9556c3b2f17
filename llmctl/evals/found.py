"""What an evaluation has found, by model: the checkpoint, and what is measured beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmctl.config.devices import Weights
from llmctl.evals import results
from llmctl.evals.measure import Figures, Measured
from llmctl.evals.report import Table
from llmctl.inference.engine import Engine

WEIGHTS = ("weights", "bits per byte", "lost", "MiB", "tokens/s")


@dataclass
class Found:
    """What came out, by model."""

    figures: dict[str, Figures] = field(default_factory=dict)
    measured: dict[str, list[Measured]] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)

    def add(self, model: str, figures: Figures, measured: list[Measured]) -> None:
        """Keep what came out of one model."""
        self.figures[model], self.measured[model] = figures, measured

    def cost(self, model: str, engine: Engine, seconds: float) -> None:
        """Keep what a model takes: bytes of its weights, and seconds of scoring the held-out rows."""
        prefix = "" if model == results.CHECKPOINT else f"{model}."
        tensors = {tensor.data_ptr(): tensor for tensor in (*engine.model.parameters(), *engine.model.buffers())}
        self.costs[f"{prefix}weights_bytes"] = sum(tensor.nbytes for tensor in tensors.values())
        targets = self.figures[model].get("heldout.loss")
        if targets is not None and seconds > 0:
            self.costs[f"{prefix}heldout.tokens_per_s"] = targets.n / seconds

    def weights(self, own: Weights) -> list[Table]:
        """Bits per byte, size and speed of each kind of weights, as a table; none where a single one was measured.

        Args:
            own: the kind of the checkpoint's.
        """
        rows = []
        kinds: dict[str, str] = {results.CHECKPOINT: own, results.UNROUNDED: "plain"}
        for model in self.figures:
            prefix = "" if model == results.CHECKPOINT else f"{model}."
            if (size := self.costs.get(f"{prefix}weights_bytes")) is None:
                continue
            bits = self.figures[model].get(results.BITS)
            lost = results.lost(self.figures, model)
            rows.append(
                [
                    kinds.get(model, model),
                    "" if bits is None else f"{bits.value:.4f}",
                    "" if lost is None else f"{lost:+.4f}",
                    f"{size / 2**20:.2f}",
                    f"{speed:,.0f}" if (speed := self.costs.get(f"{prefix}heldout.tokens_per_s")) else "",
                ]
            )
        return [Table("Rounded weights, on the held-out rows", WEIGHTS, rows)] if len(rows) > 1 else []
