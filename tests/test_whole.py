"""Checkpoints that are whole, and what is resumed from when one is not."""

import logging
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from doublehead_d2.checkpoint import DoubleHeadCheckpointer
from doublehead_d2.checkpoint.reading import load_tensors
from doublehead_d2.checkpoint.whole import has_checkpoint
from doublehead_d2.files import whole_file


def model_of(value: float) -> nn.Linear:
    model = nn.Linear(64, 64)
    nn.init.constant_(model.weight, value)
    return model


def save(folder: Path, *iterations: int, final: bool = False, **options: Any) -> None:
    """Checkpoints whose weights are their iterations."""
    for iteration in iterations:
        checkpointer = DoubleHeadCheckpointer(model_of(iteration), str(folder), **options)
        name = "model_final" if final else f"model_{iteration:07d}"
        checkpointer.save(name, iteration=iteration)


def resumed(folder: Path) -> int:
    model = model_of(-1)
    checkpointer = DoubleHeadCheckpointer(model, str(folder))
    iteration = checkpointer.resume_or_load("", resume=True)["iteration"]
    assert model.weight[0, 0] == iteration and checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file().endswith(f"{iteration:07d}.pth") or iteration == 9
    return iteration


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_nan(path: Path) -> None:
    content = load_tensors(str(path))
    content["model"]["weight"][3, 4] = float("nan")
    torch.save(content, path)


DAMAGES = {
    "truncated": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "damaged: the checksum of": flip,
    "not finite, weight first": make_nan,
    "is no checkpoint": lambda path: torch.save([1], path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 5, 7)
    DAMAGES[damage](tmp_path / "model_0000007.pth")
    assert resumed(tmp_path) == 5
    (said,) = (x.getMessage() for x in caplog.records if "whole checkpoint" in x.getMessage())
    assert "model_0000007.pth'" in said and "\n" not in said
    if damage != "empty":  # torch's word for it
        assert damage in said
    assert f"going on from '{tmp_path / 'model_0000005.pth'}', the newest whole" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "last_checkpoint' is not there: going on"),
        ("", "last_checkpoint' is empty: going on"),
        ("model_0000099.pth", "model_0000099.pth', which is not there: going on"),
    ],
)
def test_a_lost_tag(
    content: str | None, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 7, 5)
    save(tmp_path, 6, final=True)
    tag = tmp_path / "last_checkpoint"
    tag.unlink() if content is None else tag.write_text(content)
    assert resumed(tmp_path) == 7  # the newest by iterations, not by the time of writing
    assert said in caplog.text


def test_the_final_model_counts_by_its_iterations(tmp_path: Path) -> None:
    save(tmp_path, 1, 7)
    save(tmp_path, 9, final=True)
    (tmp_path / "last_checkpoint").unlink()
    assert resumed(tmp_path) == 9
    truncate(tmp_path / "model_final.pth")
    assert resumed(tmp_path) == 7


def test_weights_alone_are_not_resumed(tmp_path: Path) -> None:
    torch.save({"model": model_of(3).state_dict()}, tmp_path / "model_final.pth")
    with pytest.raises(ValueError, match="no checkpoint in .* is whole: .* has weights alone; all"):
        DoubleHeadCheckpointer(model_of(0), str(tmp_path)).resume_or_load("", resume=True)


def test_nothing_whole_is_refused_and_nothing_begins_anew(tmp_path: Path) -> None:
    checkpointer = DoubleHeadCheckpointer(model_of(0), str(tmp_path))
    assert checkpointer.resume_or_load("", resume=True) == {}
    assert not checkpointer.has_checkpoint() and not has_checkpoint(str(tmp_path))
    save(tmp_path, 1, 2)
    for path in tmp_path.glob("*.pth"):
        truncate(path)
    with pytest.raises(ValueError, match=r"is whole: .*0000002.pth' .*; .*0000001.pth' .*allowed"):
        DoubleHeadCheckpointer(model_of(0), str(tmp_path)).resume_or_load("", resume=True)
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    for path in tmp_path.glob("*.pth"):
        path.unlink()
    with pytest.raises(ValueError, match="names .*, which is not there; allowed: a whole one"):
        DoubleHeadCheckpointer(model_of(0), str(tmp_path)).resume_or_load("", resume=True)


def test_after_a_fall_back_the_next_one_is_the_last(tmp_path: Path) -> None:
    save(tmp_path, 1, 5)
    truncate(tmp_path / "model_0000005.pth")
    checkpointer = DoubleHeadCheckpointer(model_of(2), str(tmp_path))
    checkpointer.resume_or_load("", resume=True)
    assert checkpointer.get_checkpoint_file().endswith("model_0000001.pth")
    checkpointer.save("model_0000002", iteration=2)
    assert checkpointer.get_checkpoint_file().endswith("model_0000002.pth")


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    save(tmp_path, 1)
    model = model_of(2)
    model.bias.data[5] = float("inf")
    checkpointer = DoubleHeadCheckpointer(model, str(tmp_path))
    message = r"weights are not finite .* in 1 tensors: bias; model_final.pth was not written"
    with pytest.raises(FloatingPointError, match=message):
        checkpointer.save("model_final", iteration=2)
    assert names(tmp_path) == ["last_checkpoint", "model_0000001.pth"] and resumed(tmp_path) == 1


def test_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 9, final=True)
    (tmp_path / "model_best.pth").write_bytes(b"")
    # 30 is of a training that this one does not follow from
    save(tmp_path, 1, 2, 30)
    save(tmp_path, 3, 4, keep=2)
    kept = ["model_0000003.pth", "model_0000004.pth", "model_0000030.pth"]
    assert names(tmp_path) == ["last_checkpoint", *kept, "model_best.pth", "model_final.pth"]
    save(tmp_path, 10, final=True, keep=1)
    assert set(kept) < set(names(tmp_path))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_cannot_be_written_leaves_the_one_before(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 9, final=True)
    before = (tmp_path / "model_final.pth").read_bytes()

    def fail(data: object, file: Any) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    expected = OSError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as raised:
        save(tmp_path, 10, final=True)
    if expected is OSError:
        assert str(raised.value).endswith(
            "model_final.pth' could not be written: No space left on device; what was saved before "
            "is whole"
        )
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert names(tmp_path) == ["last_checkpoint", "model_final.pth"]


def test_an_error_that_is_not_of_writing_stays(tmp_path: Path) -> None:
    class Broken(nn.Linear):
        def state_dict(self, *args: Any, **more: Any) -> Any:
            raise RuntimeError("of the model")

    with pytest.raises(RuntimeError, match="of the model"):
        DoubleHeadCheckpointer(Broken(1, 1), str(tmp_path)).save("model_final")


def write_until_killed(folder: str, stage: str) -> None:
    """Save a second checkpoint, and be killed at a stage of that."""
    real = torch.save

    def save_half(data: object, file: Any) -> None:
        real(data, file)
        if stage == "half":
            file.truncate(file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def kill(source: str, target: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save_half
    if stage == "before renaming":
        os.replace = kill
    checkpointer = DoubleHeadCheckpointer(model_of(10), folder)
    if stage == "before the tag":
        checkpointer.tag_last_checkpoint = lambda name: kill("", "")
    checkpointer.save("model_final", iteration=10)


@pytest.mark.parametrize("stage", ["half", "before renaming", "before the tag"])
def test_a_kill_while_writing_leaves_a_whole_one(stage: str, tmp_path: Path) -> None:
    save(tmp_path, 9, final=True)
    process = multiprocessing.get_context("fork").Process(
        target=write_until_killed, args=(str(tmp_path), stage)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    content = DoubleHeadCheckpointer(model_of(0), str(tmp_path)).resume_or_load("", resume=True)
    assert content["iteration"] == (10 if stage == "before the tag" else 9)
    assert len(names(tmp_path)) == (2 if stage == "before the tag" else 3)  # an unfinished file


def test_files_are_on_the_disk_before_they_have_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def rename(source: str, target: str) -> None:
        done.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    with whole_file(tmp_path / "a", synced=True) as temporary:
        Path(temporary).write_text("whole")
    assert done == [os.path.basename(temporary), "renamed", tmp_path.name]
    with whole_file(tmp_path / "b") as temporary:
        Path(temporary).write_text("whole")
    assert done[3:] == ["renamed"]


def test_loading_looks_at_checksums(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    save(tmp_path, 1)
    path = tmp_path / "model_0000001.pth"
    flip(path)
    with pytest.raises(ValueError, match="is damaged: the checksum of .*/data/0 in it does not fi"):
        DoubleHeadCheckpointer(model_of(0)).load(str(path))
