"""Which process of a job this one is, by the environment that torchrun or SLURM gives it."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

FIRST_PORT, PORTS = 10000, 20000  # below those that systems give to clients


class Place(NamedTuple):
    """A process among those of a job, which are as many on each machine."""

    rank: int
    processes: int  # of the job
    local_rank: int
    local_processes: int  # of this machine
    url: str  # where they meet
    by: str  # who has started them

    @property
    def machine(self) -> int:
        """The number of this machine, from 0."""
        return self.rank // self.local_processes

    @property
    def machines(self) -> int:
        """How many there are."""
        return self.processes // self.local_processes


def place_from_environment(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place of this process, None if nobody has started several.

    Raises:
        ValueError: processes are spread over machines as detectron2 cannot take them.
    """
    by_torchrun = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    if all(name in environment for name in by_torchrun):
        rank, processes, local_rank, local = (int(environment[x]) for x in by_torchrun[:4])
        return _checked(Place(rank, processes, local_rank, local, url="env://", by="torchrun"))
    # Outside of a step, that is in the script of a job, there is one process, however many tasks.
    if "SLURM_PROCID" not in environment or "SLURM_STEP_ID" not in environment:
        return None
    processes = int(environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"])
    if processes == 1:
        return None
    per_machine = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get(
        "SLURM_TASKS_PER_NODE", str(processes)
    )
    uniform = re.fullmatch(r"(\d+)(\(x\d+\))?", per_machine)
    if not uniform:
        raise ValueError(
            f"SLURM has started {per_machine} tasks on the machines; allowed: as many on each "
            "(--ntasks-per-node)"
        )
    return _checked(
        Place(
            int(environment["SLURM_PROCID"]),
            processes,
            int(environment["SLURM_LOCALID"]),
            int(uniform[1]),
            url=_slurm_url(environment),
            by="SLURM",
        )
    )


def first_host(nodes: str) -> str:
    """The first machine of SLURM's list, such as "gpu[007-010,12],login"."""
    if shutil.which("scontrol"):
        command = ["scontrol", "show", "hostnames", nodes]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip():
            return answer.stdout.split()[0]
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if not first:
        raise ValueError(f"SLURM_NODELIST is '{nodes}', which names no machine")
    # Of each bracket the first number, with its zeros
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def _slurm_url(environment: Mapping[str, str]) -> str:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    host = environment.get("MASTER_ADDR") or first_host(nodes)
    # The steps of all jobs on a machine meet at ports of their own.
    step = environment["SLURM_STEP_ID"]
    number = int(environment.get("SLURM_JOB_ID", "0")) * 7 + (int(step) if step.isdigit() else 0)
    return f"tcp://{host}:{environment.get('MASTER_PORT') or FIRST_PORT + number % PORTS}"


def _checked(place: Place) -> Place:
    rank, processes, local_rank, local_processes, *_ = place
    if processes % local_processes or rank % local_processes != local_rank:
        raise ValueError(
            f"process {rank} of {processes} is number {local_rank} of {local_processes} on its "
            f"machine, as {place.by} says; allowed: as many on each machine, numbered one machine "
            "after the other (SLURM: --distribution=block)"
        )
    return place
