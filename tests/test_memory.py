"""Freed memory is kept where a program asks for it."""

import argparse
import subprocess
import sys

import pytest

from doublehead_d2.engine import memory, train

FREES = """
import platform, torch
from doublehead_d2.engine.memory import keep_freed_memory
def resident():
    return 4096 * int(open("/proc/self/statm").read().split()[1])

kept, before = {call}, resident()
tensor = torch.ones(2**27)  # 512 MiB
del tensor
print(platform.libc_ver()[0], kept, resident() - before > 2**28)
"""


def after_freeing(call: str) -> list[str]:
    command = [sys.executable, "-c", FREES.format(call=call)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_freed_memory_is_kept() -> None:
    libc, kept, is_large = after_freeing("keep_freed_memory()")
    assert (kept, is_large) == (("True", "True") if libc == "glibc" else ("False", "False"))
    assert after_freeing("None")[1:] == ["None", "False"]


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False


@pytest.mark.parametrize(("device", "calls"), [("cpu", 1), ("cuda", 0)])
def test_train_net_keeps_it_on_a_cpu(
    device: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop(cfg: argparse.Namespace) -> None:
        raise Stop

    kept: list[int] = []
    cfg = argparse.Namespace(MODEL=argparse.Namespace(DEVICE=device))
    monkeypatch.setattr(train, "setup", lambda args: cfg)
    monkeypatch.setattr(train, "keep_freed_memory", lambda: kept.append(1))
    monkeypatch.setattr(train, "Trainer", stop)
    with pytest.raises(Stop):
        train.main(argparse.Namespace(eval_only=False))
    assert len(kept) == calls
