"""One rank that `launch.run_ranks` started: `python -m llmctl.train.worker [--local_rank=N] SPEC`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llmctl.config.errors import LlmctlError
from llmctl.pipeline import spec
from llmctl.pipeline.processes import end_with_stdin
from llmctl.pipeline.stage import load
from llmctl.store.files import publish_bytes
from llmctl.train import launch
from llmctl.train.ranks import environment


def main(words: list[str]) -> int:
    """Run the job that the file `words[-1]` describes; rank 0 leaves the product beside it."""
    end_with_stdin()
    path = Path(next(word for word in words if not word.startswith("--local_rank")))
    rank = environment().rank
    try:
        job, entry = spec.rebuild(json.loads(path.read_bytes()), leads=rank == 0)
        product = load(entry)(job)
    except LlmctlError as error:
        publish_bytes(path.with_name(launch.failure_file(rank)), json.dumps(spec.describe_failure(error)).encode())
        return error.exit_code
    if rank == 0:
        publish_bytes(path.with_name(launch.PRODUCT_FILE), json.dumps(spec.describe_product(product)).encode())
    return 0


if __name__ == "__main__":
    launch.leave(main(sys.argv[1:]))
