"""Plain torch in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmctl.config.train import TrainConfig
from llmctl.model.transformer import Transformer
from llmctl.train.elementwise import Sophia
from llmctl.train.optimizers import build_optimizer, described, set_rate
from llmctl.train.strategy import Call, autocast_dtype

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"


class Local:
    """A `Strategy` of one rank, with its state in safetensors."""

    name = "local"
    rank = 0
    world_size = 1
    zero = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def prepare(self, model: Transformer, config: TrainConfig, micro_batches: int) -> None:
        """Move the model to the device and make its optimizer."""
        del micro_batches
        self.model = model.to(self.device).train()
        if config.compile:
            self.model.compile(dynamic=False)
        self.parameters = dict(model.named_parameters())  # a tied one is named once
        self.autocast = autocast_dtype(config.precision)
        self.optimizer = build_optimizer(model, config.optimizer, self.autocast)
        self.groups = described(self.optimizer, config.optimizer)
        self.clip_norm = config.clip_norm

    def forward(self, call: Call) -> Tensor:
        """Run under autocast where the precision says so."""
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return call(self.model)

    def backward(self, loss: Tensor) -> None:
        """Accumulate into `.grad`."""
        loss.backward()  # type: ignore[no-untyped-call]

    def described(self) -> str:
        """Of the groups as they were built."""
        return self.groups

    def step(self, factor: float) -> float:
        """Clip, update, clear."""
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.clip_norm)
        set_rate(self.optimizer, factor)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def estimate(self, targets: float) -> None:
        """Take the gradient of sampled targets as Sophia's estimate of the curvature, and clear it."""
        assert isinstance(self.optimizer, Sophia), "no other optimizer asks for it"
        self.optimizer.estimate(targets)
        self.optimizer.zero_grad(set_to_none=True)

    def sum(self, values: Sequence[float]) -> list[float]:
        """The values themselves."""
        return [float(value) for value in values]

    def save(self, directory: Path) -> None:
        """Weights by name; the optimizer's tensors as `<parameter>/<quantity>`; the generators' states."""
        save_file(
            {name: value.detach().contiguous() for name, value in self.parameters.items()}, directory / MODEL_FILE
        )
        state = {"rng/cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        for name, parameter in self.parameters.items():
            for quantity, value in self.optimizer.state[parameter].items():
                state[f"{name}/{quantity}"] = value.contiguous()
        save_file(state, directory / OPTIMIZER_FILE)

    def load(self, directory: Path) -> None:
        """Put everything back, bit for bit."""
        saved = load_file(directory / MODEL_FILE, device=str(self.device))
        state = load_file(directory / OPTIMIZER_FILE)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(saved[name])
        torch.set_rng_state(state.pop("rng/cpu"))
        if "rng/cuda" in state:
            torch.cuda.set_rng_state(state.pop("rng/cuda"), self.device)
        for key, value in state.items():
            name, _, quantity = key.rpartition("/")
            self.optimizer.state[self.parameters[name]][quantity] = value.to(self.device)

    def weights(self) -> dict[str, Tensor]:
        """A copy on the CPU."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self.parameters.items()}
