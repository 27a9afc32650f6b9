"""Start one process per GPU, or as many CPU processes where there is no GPU."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import launch as launch_on_gpus
from detectron2.utils import comm

from doublehead_d2.engine.interrupts import interrupt_once, processes_end_with_this_one


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
) -> None:
    """Run `main_func(*args)` in one process per GPU, as `detectron2.engine.launch` does.

    Without CUDA the same number of processes train on the CPU through gloo, which detectron2 0.6
    refuses. When this process is interrupted, so are those that it started, and it waits for them.

    Args:
        main_func: a module-level function, since other processes import it.
        num_gpus_per_machine: processes on each machine.
        num_machines: machines in all.
        machine_rank: this machine's number, from 0.
        dist_url: where the processes meet, e.g. tcp://host:port; "auto" picks a free port and needs
            a single machine.
        args: arguments of `main_func`.

    Raises:
        ValueError: names the option that cannot be met and what is allowed.
        KeyboardInterrupt: it was interrupted; no process is left.
    """
    world_size = num_machines * num_gpus_per_machine
    if num_gpus_per_machine < 1 or num_machines < 1:
        raise ValueError(
            f"--num-gpus {num_gpus_per_machine} --num-machines {num_machines}: "
            "both must be 1 or more"
        )
    if not 0 <= machine_rank < num_machines:
        raise ValueError(
            f"--machine-rank is {machine_rank}; allowed: 0 to {num_machines - 1} "
            f"(--num-machines {num_machines})"
        )
    if dist_url == "auto" and num_machines > 1:
        raise ValueError(
            "--dist-url auto picks a port of this machine; with --num-machines above 1 give the "
            "same tcp://host:port of the first machine everywhere"
        )
    if torch.cuda.is_available() and num_gpus_per_machine > torch.cuda.device_count():
        raise ValueError(
            f"--num-gpus is {num_gpus_per_machine}; this machine has {torch.cuda.device_count()}"
        )
    if world_size == 1:
        main_func(*args)
        return
    if dist_url == "auto":
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    job = (_one_of_several, num_gpus_per_machine, num_machines, machine_rank, dist_url)
    with processes_end_with_this_one():
        if torch.cuda.is_available():
            launch_on_gpus(*job, (main_func, args))
        else:
            torch.multiprocessing.spawn(
                _cpu_worker, nprocs=num_gpus_per_machine, args=(*job, (main_func, args))
            )


def _one_of_several(main_func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    interrupt_once()
    main_func(*args)


def _cpu_worker(
    local_rank: int,
    main_func: Callable[..., Any],
    num_processes: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    args: tuple[Any, ...],
) -> None:
    # Left alone, every process would start a thread on each core.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_processes))
    dist.init_process_group(
        "gloo",
        init_method=dist_url,
        world_size=num_machines * num_processes,
        rank=machine_rank * num_processes + local_rank,
    )
    _create_local_process_group(num_processes, num_machines, machine_rank)
    comm.synchronize()
    main_func(*args)
    dist.destroy_process_group()


def _create_local_process_group(num_processes: int, num_machines: int, machine_rank: int) -> None:
    """Tell detectron2 which processes share this machine."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(num_processes)
        return
    # detectron2 0.6 has no public way: its own launch assigns this variable, too.
    for machine in range(num_machines):
        group = dist.new_group(list(range(machine * num_processes, (machine + 1) * num_processes)))
        if machine == machine_rank:
            comm._LOCAL_PROCESS_GROUP = group


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
