"""Files written whole, and the list that is whole at any time."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from doublehead_d2 import files
from doublehead_d2.files import growing_json, write_json


def test_a_growing_list_is_whole_after_each_value(tmp_path: Path) -> None:
    path, whole = tmp_path / "list.json", tmp_path / "whole.json"
    path.write_text("the longer text of an earlier run, which has to go\n" * 9)
    values: list[Any] = [{"name": "Zürich\n", "boxes": [1.5, [2]]}, [], "a", {}]
    with growing_json(path) as append:
        for number in range(len(values) + 1):
            write_json(whole, values[:number])
            assert path.read_bytes() == whole.read_bytes()
            if number < len(values):
                append(values[number])
    assert json.loads(path.read_text()) == values


@pytest.mark.parametrize("before", [[], [1], [1, {"a": 2}]])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_value_that_cannot_be_written_leaves_the_list_whole(
    before: list, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "list.json", tmp_path / "whole.json"
    write = files._write_at

    def stop_half_way(file: Any, position: int, text: str) -> None:
        monkeypatch.setattr(files, "_write_at", write)  # what mends it may write
        write(file, position, text[: len(text) // 2])
        raise error

    with growing_json(path) as append:
        for value in before:
            append(value)
        monkeypatch.setattr(files, "_write_at", stop_half_way)
        with pytest.raises(type(error)):
            append({"long": "x" * 100})
        write_json(whole, before)
        assert path.read_bytes() == whole.read_bytes()
        append("next")
    assert json.loads(path.read_text()) == [*before, "next"]


def test_a_value_that_is_no_json_leaves_the_list_as_it_was(tmp_path: Path) -> None:
    with growing_json(tmp_path / "list.json") as append:
        append(1)
        with pytest.raises(TypeError):
            append(object())
        assert json.loads((tmp_path / "list.json").read_text()) == [1]


def test_all_of_a_text_is_written_where_a_call_writes_a_part(tmp_path: Path) -> None:
    class Sluggish:
        def __init__(self) -> None:
            self.content = b""

        def seek(self, position: int) -> None:
            self.content = self.content[:position]

        def write(self, data: bytes) -> int:
            self.content += data[:3]
            return len(data[:3])

    file = Sluggish()
    files._write_at(file, 0, "ten bytes.")
    assert file.content == b"ten bytes."


def test_the_cost_of_a_value_does_not_grow_with_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = files._write_at

    def count(file: Any, position: int, text: str) -> None:
        written.append(len(text))
        write(file, position, text)

    monkeypatch.setattr(files, "_write_at", count)
    with growing_json(tmp_path / "list.json") as append:
        for _ in range(50):
            append("value")
    assert set(written[1:]) == {written[1]} and len(written) == 50
    assert os.path.getsize(tmp_path / "list.json") > 50 * len("value")
