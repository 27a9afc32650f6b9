"""Processes that torchrun or SLURM has started know their place."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import REPOSITORY
from doublehead_d2.engine import cluster, launch
from doublehead_d2.engine.cluster import Place, first_host, place_from_environment
from doublehead_d2.engine.launch import _free_port

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "first",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_PROCID": "11",
    "SLURM_NTASKS": "16",
    "SLURM_LOCALID": "3",
    "SLURM_TASKS_PER_NODE": "8(x2)",
    "SLURM_NODELIST": "gpu[007-008]",
    "SLURM_JOB_ID": "100",
    "SLURM_STEP_ID": "3",
}


@pytest.fixture(autouse=True)
def _without_scontrol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.shutil, "which", lambda name: None)


def test_nobody_has_started_others() -> None:
    assert place_from_environment({}) is None
    for name in TORCHRUN:
        if name != "MASTER_PORT":  # which torch looks for
            assert place_from_environment({k: v for k, v in TORCHRUN.items() if k != name}) is None
    # In the script of a job, and as one task
    assert place_from_environment({k: v for k, v in SLURM.items() if k != "SLURM_STEP_ID"}) is None
    assert place_from_environment({**SLURM, "SLURM_NTASKS": "1"}) is None
    assert place_from_environment({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None


def test_torchrun() -> None:
    place = place_from_environment(TORCHRUN)
    assert place == Place(5, 8, 1, 4, "env://", "torchrun")
    assert (place.machine, place.machines) == (1, 2)


def test_slurm() -> None:
    # 10000 + 7 * 100 + 3
    place = place_from_environment(SLURM)
    assert place == Place(11, 16, 3, 8, "tcp://gpu007:10703", "SLURM")
    other = {**SLURM, "SLURM_STEP_NODELIST": "b1", "MASTER_PORT": "4"}
    assert place_from_environment(other).url == "tcp://b1:4"
    assert place_from_environment({**SLURM, "MASTER_ADDR": "c"}).url == "tcp://c:10703"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[007-010,12],login", "gpu007"),
        ("node3", "node3"),
        ("a,b", "a"),
        ("a[9,11]", "a9"),
        ("r[1-2]n[03-04].lan", "r1n03.lan"),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_scontrol_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "scontrol"
    tool.write_text('#!/bin/sh\n[ "$1 $2 $3" = "show hostnames x" ] && printf "one\\ntwo\\n"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(cluster.shutil, "which", lambda name: name)
    assert first_host("x") == "one"
    assert first_host("y[1-2]") == "y1"  # it knows nothing of that


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"SLURM_TASKS_PER_NODE": "8,4"},
            "has started 8,4 tasks on the machines; allowed: as",
        ),
        (
            {"SLURM_LOCALID": "2"},
            "process 11 of 16 is number 2 of 8 .*, as SLURM says; allowed: as",
        ),
        ({"SLURM_NTASKS": "15"}, "process 11 of 15 is number 3 of 8 on its machine"),
        ({"SLURM_NODELIST": ""}, "SLURM_NODELIST is '', which names no machine"),
    ],
)
def test_places_that_cannot_be_taken(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place_from_environment({**SLURM, **changes})


def test_options_beside_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="--num-gpus 8 .* torchrun has started 8 processes"):
        launch(print, 8)


def test_a_port_that_is_taken() -> None:
    with socket.socket() as sock:
        sock.bind(("", 0))
        sock.listen()
        url = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(ValueError, match=rf"--dist-url is {url}, and port \d+ of this machine"):
            launch(print, 2, dist_url=url)


REPORT = """
import sys, torch
from detectron2.utils import comm
from doublehead_d2.engine import launch

def report(folder):
    ranks = [comm.get_rank(), comm.get_world_size(), comm.get_local_rank(), comm.get_local_size()]
    total = torch.tensor([comm.get_rank() + 1.0])
    torch.distributed.all_reduce(total)
    torch.save([*ranks, total.item()], f"{folder}/{comm.get_rank()}.pth")

if __name__ == "__main__":
    launch(report, 1, args=(sys.argv[1],))
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests gloo processes without a GPU")
@pytest.mark.parametrize("by", ["torchrun", "SLURM"])
def test_two_processes_meet(by: str, tmp_path: Path) -> None:
    script, port = tmp_path / "report.py", str(_free_port())
    script.write_text(REPORT)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    if by == "torchrun":
        options = ["--nproc-per-node", "2", "--master-port", port]
        command = [sys.executable, "-m", "torch.distributed.run", *options, str(script)]
        started = [subprocess.Popen([*command, str(tmp_path)], env=environment)]
        local = [[0, 2], [1, 2]]
    else:  # as srun on two machines, a task on each
        place = {"SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0"}
        place |= {"SLURM_STEP_ID": "0", "MASTER_PORT": port, "SLURM_NODELIST": "localhost,other"}
        started = [
            subprocess.Popen(
                [sys.executable, str(script), str(tmp_path)],
                env={**environment, **place, "SLURM_PROCID": str(rank)},
            )
            for rank in range(2)
        ]
        local = [[0, 1], [0, 1]]
    assert [process.wait(timeout=300) for process in started] == [0] * len(started)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pth") == [rank, 2, *local[rank], 3.0]
