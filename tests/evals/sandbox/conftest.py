from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmctl.evals.sandbox.box import Sandbox
from llmctl.evals.sandbox.verdict import Limits

SHORT = Limits(timeout_s=0.8)  # for programs that never end


@pytest.fixture(scope="package")
def box() -> Iterator[Sandbox]:
    """One launcher for all tests; skipped, with the reason, where the system has no sandbox."""
    with Sandbox(Limits(timeout_s=5)) as sandbox:
        if reason := sandbox.refusal():
            pytest.skip(f"no sandbox here: {reason}")
        yield sandbox
