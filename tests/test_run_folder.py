"""Whose the folder of a training is."""

import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from doublehead_d2.engine import run_folder
from doublehead_d2.engine.run_folder import check_folder, claim, refuse_used, release, traces

FORK = multiprocessing.get_context("fork")


def claim_and_wait(folder: str, connection: Connection) -> None:
    try:
        claim(folder)
        connection.send("claimed")
    except ValueError as error:
        connection.send(str(error))
    connection.recv()


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    yield
    release()


def other(folder: Path) -> tuple[BaseProcess, str]:
    """Another process that has tried, and what it says."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=claim_and_wait, args=(str(folder), there), daemon=True)
    process.start()
    process.connection = here  # kept open: it waits
    return process, here.recv()


def test_one_training_at_a_time(tmp_path: Path) -> None:
    first, said = other(tmp_path)
    assert said == "claimed"
    message = rf"another training writes into .* \(process {first.pid} on .*\); allowed: ano"
    with pytest.raises(ValueError, match=message):
        claim(str(tmp_path))
    first.kill()
    first.join()
    claim(str(tmp_path))  # a kill has freed it
    # As those that load images: they do not have what this process has
    second, said = other(tmp_path)
    assert said.startswith("another training writes into")
    release()
    third, said = other(tmp_path)
    assert said == "claimed"
    for process in (second, third):
        process.kill()
        process.join()


def test_unfinished_files_go(tmp_path: Path) -> None:
    for name in ("model_0000001.pth.17.part", "last_checkpoint.17.part", "apart"):
        (tmp_path / name).write_text("")
    claim(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [run_folder.LOCK, "apart"]


def test_other_processes_claim_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    claim(str(tmp_path), overwrite=True)
    assert not list(tmp_path.iterdir())


NAMES = ["last_checkpoint", "metrics.json", "model_0000001.pth", "model_final.pth"]


@pytest.mark.parametrize("name", [*NAMES, "model_best.pth"])
def test_a_used_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("")
    (tmp_path / "model_1.pth").write_text("")
    assert traces(str(tmp_path)) == []
    refuse_used(str(tmp_path), "", overwrite=False)
    (tmp_path / name).write_text("")
    message = rf"is the folder of another training \({name}\); allowed: --resume .* --overwrite"
    with pytest.raises(ValueError, match=message):
        refuse_used(str(tmp_path), "", overwrite=False)
    refuse_used(str(tmp_path), "", overwrite=True)


def test_many_traces_are_three(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_text("")
    with pytest.raises(
        ValueError, match=r"\(last_checkpoint, metrics.json, model_0000001.pth ...\)"
    ):
        refuse_used(str(tmp_path), "", overwrite=False)


def test_overwriting_removes_the_other_training(tmp_path: Path) -> None:
    for name in [*NAMES, "log.txt", "mine.txt"]:
        (tmp_path / name).write_text("")
    claim(str(tmp_path))
    release()
    assert traces(str(tmp_path)) == NAMES
    weights = tmp_path / ".." / tmp_path.name / "model_final.pth"
    with pytest.raises(ValueError, match="would remove MODEL.WEIGHTS '.*', which lies in OUTPUT_D"):
        refuse_used(str(tmp_path), str(weights), overwrite=True)
    claim(str(tmp_path), overwrite=True)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [run_folder.LOCK, "log.txt", "mine.txt"]


def test_folders_that_cannot_be_written_to(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for folder, reason in ((file, "it is a file"), (file / "below", "Not a directory")):
        with pytest.raises(
            ValueError, match=f"OUTPUT_DIR '{folder}' cannot be written to: {reason}"
        ):
            check_folder(str(folder))
    with pytest.raises(ValueError, match="OUTPUT_DIR is empty; allowed: a folder"):
        check_folder("")
    check_folder(str(tmp_path / "a" / "b"))
    assert not list((tmp_path / "a" / "b").iterdir())
