"""A run of `grpo` as a program, to be killed: FOLDER POLICY PROMPTS."""

import sys
from pathlib import Path

from llmctl.objectives.grpo import train
from llmctl.store.artifact import Artifact, FileInput
from llmctl.store.manifest import MANIFEST_FILE, Manifest
from tests.objectives.test_grpo import job_of

if __name__ == "__main__":
    folder, policy, prompts = map(Path, sys.argv[1:])
    manifest = Manifest.model_validate_json((policy / MANIFEST_FILE).read_bytes())
    train(job_of(folder, Artifact(policy, manifest, "policy"), FileInput.of(prompts, "prompts")))
