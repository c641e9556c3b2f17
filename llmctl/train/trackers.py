"""Experiment trackers, each from a package of its own that is imported only where it is asked for."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from llmctl.config.errors import UsageError

PROJECT = "llmctl"


class Tracker(Protocol):
    """Takes the figures of steps."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Take one row of metrics."""
        ...

    def close(self) -> None:
        """End the run."""
        ...


class TensorBoard:
    """Event files in `<where>/<run>`."""

    def __init__(self, where: Path, run: str, config: Mapping[str, Any]) -> None:
        del config
        _package("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(where / run))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """One scalar for each figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


class Wandb:
    """A Weights & Biases run; offline unless its own environment says otherwise."""

    def __init__(self, where: Path, run: str, config: Mapping[str, Any]) -> None:
        where.mkdir(parents=True, exist_ok=True)
        mode = os.environ.get("WANDB_MODE", "online" if os.environ.get("WANDB_API_KEY") else "offline")
        self._run = _package("wandb").init(project=PROJECT, name=run, dir=str(where), config=dict(config), mode=mode)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """One row."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackio:
    """A trackio run in a local folder."""

    def __init__(self, where: Path, run: str, config: Mapping[str, Any]) -> None:
        os.environ["TRACKIO_DIR"] = str(where)  # read when it is imported
        self._trackio = _package("trackio")
        self._run = self._trackio.init(project=PROJECT, name=run, config=dict(config), embed=False)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """One row."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._trackio.finish()


class Mlflow:
    """An MLflow run, in the folder or under MLFLOW_TRACKING_URI where that is set."""

    def __init__(self, where: Path, run: str, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # its small package has no database
        self._mlflow = _package("mlflow")
        where.mkdir(parents=True, exist_ok=True)
        self._mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", where.absolute().as_uri()))
        self._mlflow.set_experiment(PROJECT)
        self._mlflow.start_run(run_name=run)
        self._mlflow.log_params({name: str(value)[:500] for name, value in config.items()})

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """One row."""
        self._mlflow.log_metrics(dict(figures), step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


Maker = Callable[[Path, str, Mapping[str, Any]], Tracker]
TRACKERS: dict[str, Maker] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio, "mlflow": Mlflow}


def build(name: str, where: Path, run: str, config: Mapping[str, Any]) -> Tracker:
    """Start a run with one tracker.

    Args:
        name: of the tracker.
        where: the folder that it may write to.
        run: what to call the run.
        config: what it was configured with.

    Raises:
        UsageError: its package is not installed.
    """
    return TRACKERS[name](where, run, config)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(
            f"track={name} needs the package {name}, which is not installed", hint=f"pip install 'llmctl[{name}]'"
        ) from None
