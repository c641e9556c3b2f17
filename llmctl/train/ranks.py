"""Who this process is among its peers, as a launcher's environment says.

Every command asks this first, so importing it loads nothing of llmctl's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

FIRST_HOST = re.compile(r"([^,\[]+)(?:\[(\d+))?")  # of `node[03-07,9]` or `a,b`, as Slurm writes lists of hosts
SLURM_PORTS = range(15_000, 25_000)


@dataclass(frozen=True)
class Ranks:
    """This process among its peers, as a launcher's environment says.

    Attributes:
        rank: over all machines, 0 leads.
        world_size: number of ranks; 1 without a launcher.
        local_rank: on this machine.
        local_size: ranks on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1


def environment(environ: Mapping[str, str] | None = None) -> Ranks:
    """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_(WORLD_)SIZE, which deepspeed and torchrun set; or what srun sets.

    A batch script of Slurm is no rank, though it sees most of Slurm's variables: SLURM_STEP_NUM_TASKS is srun's own.
    """
    given = os.environ if environ is None else environ
    if "RANK" not in given and int(given.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        here = given.get("SLURM_STEP_TASKS_PER_NODE", "1").partition("(")[0].partition(",")[0]
        rank, size = int(given["SLURM_PROCID"]), int(given["SLURM_STEP_NUM_TASKS"])
        return Ranks(rank, size, int(given.get("SLURM_LOCALID", "0")), int(here))
    if "RANK" not in given or "WORLD_SIZE" not in given:
        return Ranks()
    here = given.get("LOCAL_WORLD_SIZE", given.get("LOCAL_SIZE", "1"))
    return Ranks(int(given["RANK"]), int(given["WORLD_SIZE"]), int(given.get("LOCAL_RANK", "0")), int(here))


def meeting_point(environ: Mapping[str, str]) -> dict[str, str]:
    """What torch.distributed and DeepSpeed read from the environment, where srun started this rank; else nothing.

    The port follows from the job's number, so that every rank finds the same one and jobs of one machine differ.
    """
    if "RANK" in environ or "SLURM_STEP_NUM_TASKS" not in environ:
        return {}
    ranks = environment(environ)
    first = FIRST_HOST.match(environ.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    port = SLURM_PORTS.start + int(environ.get("SLURM_JOB_ID", "0")) % len(SLURM_PORTS)
    named = {"RANK": ranks.rank, "WORLD_SIZE": ranks.world_size, "LOCAL_RANK": ranks.local_rank}
    named |= {"LOCAL_WORLD_SIZE": ranks.local_size, "MASTER_PORT": int(environ.get("MASTER_PORT", port))}
    host = environ.get("MASTER_ADDR", "".join(first.groups(default="")) if first else "127.0.0.1")
    return {"MASTER_ADDR": host, **{name: str(value) for name, value in named.items()}}
