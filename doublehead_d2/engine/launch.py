"""Start one process per GPU, or as many CPU processes where there is no GPU; or be one of them."""

import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from detectron2.engine import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException

from doublehead_d2.engine.cluster import Place, place_from_environment
from doublehead_d2.engine.interrupts import (
    SIGNALS,
    asked_to_end,
    heed_signals,
    killed_after_failure,
    processes_end_with_this_one,
)


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
    Where torchrun or SLURM has started the processes, this is one of them, and starts none.

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
        KeyboardInterrupt: this process or another one was interrupted; none is left.
        ProcessExitedException: a process has died; the others were ended.
    """
    place = place_from_environment()
    if place is not None and place.processes > 1:
        if num_gpus_per_machine > 1 or num_machines > 1:
            raise ValueError(
                f"--num-gpus {num_gpus_per_machine} --num-machines {num_machines}: {place.by} has "
                f"started {place.processes} processes already; allowed: without these options"
            )
        _run_at(place, main_func, args)
        return
    _check(num_gpus_per_machine, num_machines, machine_rank, dist_url)
    if num_machines * num_gpus_per_machine == 1:
        main_func(*args)
        return
    if dist_url == "auto":
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    elif machine_rank == 0:
        _check_port(dist_url or "")
    job = (num_gpus_per_machine, num_machines, machine_rank, dist_url, main_func, args)
    with processes_end_with_this_one():
        context = torch.multiprocessing.spawn(
            _one_of_several, nprocs=num_gpus_per_machine, args=job, join=False
        )
        try:
            with killed_after_failure(context.processes):
                while not context.join():
                    pass
        except ProcessExitedException as error:
            if error.exit_code - 128 in SIGNALS:  # asked to end, and so did all
                raise KeyboardInterrupt(error.exit_code - 128) from None
            raise


def _check(processes: int, machines: int, machine_rank: int, dist_url: str | None) -> None:
    if processes < 1 or machines < 1:
        raise ValueError(
            f"--num-gpus {processes} --num-machines {machines}: both must be 1 or more"
        )
    if not 0 <= machine_rank < machines:
        raise ValueError(
            f"--machine-rank is {machine_rank}; allowed: 0 to {machines - 1} "
            f"(--num-machines {machines})"
        )
    if dist_url == "auto" and machines > 1:
        raise ValueError(
            "--dist-url auto picks a port of this machine; with --num-machines above 1 give the "
            "same tcp://host:port of the first machine everywhere"
        )
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise ValueError(f"--num-gpus is {processes}; this machine has {torch.cuda.device_count()}")


def _one_of_several(
    local_rank: int,
    num_processes: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    main_func: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    heed_signals()
    rank = machine_rank * num_processes + local_rank
    processes = num_machines * num_processes
    try:
        _run_at(
            Place(rank, processes, local_rank, num_processes, url=dist_url, by="launch"),
            main_func,
            args,
        )
    except KeyboardInterrupt as interrupt:  # which torch would take for the end of the job
        sys.exit(128 + (interrupt.args[0] if interrupt.args else SIGNALS[0]))
    except Exception:
        # What is left of gloo may wait at the end of the process, where no handler runs.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if asked_to_end() == signal.SIGTERM:  # by torch, since another process has failed
            signal.raise_signal(signal.SIGTERM)
        raise


def _run_at(place: Place, main_func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Join the job, and run a function as one of its processes."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        # A scheduler may show each process a single GPU.
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    else:
        # Left alone, every process would start a thread on each core.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // place.local_processes))
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=place.url,
        world_size=place.processes,
        rank=place.rank,
        timeout=DEFAULT_TIMEOUT,  # in which the main process may compute a metric alone
    )
    _create_local_process_group(place)
    comm.synchronize()
    main_func(*args)
    dist.destroy_process_group()


def _create_local_process_group(place: Place) -> None:
    """Tell detectron2 which processes share this machine."""
    size = place.local_processes
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(size)
        return
    # detectron2 0.6 has no public way: its own launch assigns this variable, too.
    for machine in range(place.machines):
        group = dist.new_group(list(range(machine * size, (machine + 1) * size)))
        if machine == place.machine:
            comm._LOCAL_PROCESS_GROUP = group


def _check_port(url: str) -> None:
    """Refuse a port of this machine that is taken, which torch would tell at length."""
    port = urlsplit(url).port if url.startswith("tcp://") else None
    if port is None:
        return
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("", port))
        except OSError as error:
            raise ValueError(
                f"--dist-url is {url}, and port {port} of this machine cannot be had: "
                f"{error.strerror}; allowed: a free port, or, on a single machine, auto"
            ) from None


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
