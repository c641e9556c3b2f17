import sys
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)  # synthetic_run is imported here, and by name in ranks


@pytest.fixture(autouse=True, scope="module")
def _ranks_find_the_entry():
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", HERE)
        yield
