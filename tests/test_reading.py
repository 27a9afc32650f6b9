"""Checkpoint files that run no code, and their conversion with the tool."""

import codecs
import collections
import hashlib
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode

from doublehead_d2.checkpoint import convert_checkpoint
from doublehead_d2.checkpoint.reading import convert_file, load_tensors, refuse_code_in_pickle
from doublehead_d2.tools import convert_checkpoint as tool
from foreign import foreign_checkpoint, save_foreign


class Code:
    """Pickled, this makes the file `marker` when it is unpickled without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def saved(value: object, path: Path, old: bool = False) -> str:
    torch.save(value, path, _use_new_zipfile_serialization=not old)
    return str(path)


# --------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("old", [True, False])
def test_files_with_code_are_refused_and_not_run(old: bool, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = saved({"model": {"a": torch.zeros(2)}, "x": Code(marker)}, tmp_path / "a.pth", old)
    with pytest.raises(ValueError, match=r"a.pth' is refused: .* run \w+\.system"):
        load_tensors(path)
    assert not marker.exists()


def test_pickles_with_code_are_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": Code(marker)}, "__author__": "x"}))
    with pytest.raises(ValueError, match=r"a.pkl' is refused: .* arrays, \w+\.system, "):
        refuse_code_in_pickle(str(path))
    assert not marker.exists()
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="truncated or no pickle"):
        refuse_code_in_pickle(str(path))


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays_are_not_refused(protocol: int, tmp_path: Path) -> None:
    weights = collections.OrderedDict(
        a=np.arange(3.0), b=np.float32(1), c=np.zeros(0, np.int64), d=np.ones((2, 3), ">f4").T
    )
    weights["e"] = np.array([True, False])
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "zoo"}, protocol))
    refuse_code_in_pickle(str(path))


# {"w": array([1, 2], float32)} as Python 2 pickled it: strings are bytes, also those of the array
OLD_PICKLE = (
    b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNN"
    b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00\x00@tbs."
)


def test_boxes_of_proposals_may_state_their_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"bbox_mode": BoxMode.XYWH_ABS, "boxes": [np.zeros((0, 4))]}))
    refuse_code_in_pickle(str(path))
    path.write_bytes(pickle.dumps(Call(BoxMode, "x")))
    with pytest.raises(ValueError, match=r"plain arrays, BoxMode\('x'\), and"):
        refuse_code_in_pickle(str(path))


def test_pickles_of_python_2_are_not_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(OLD_PICKLE)
    refuse_code_in_pickle(str(path))
    assert pickle.loads(OLD_PICKLE, encoding="latin1")["w"].tolist() == [1, 2]


class Call:
    """Pickled, a call of anything."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Call(np.ndarray, (1,), "f8"), "truncated or no pickle of arrays: .*not callable"),
        (np.array([{}], dtype=object), r"arrays, numpy.dtype\('O8'\)"),
        (np.zeros(2, [("a", "f4")]), r"arrays, numpy.dtype\('V4'\)"),
        (Call(np.dtype, "O"), r"arrays, numpy.dtype\('O'\)"),
        (Call(getattr, "a", "b"), "arrays, builtins.getattr"),
        (np.datetime64("2020-01-01"), r"arrays, numpy.dtype\('M8'\)"),
        (Call(codecs.encode, "a", "zip"), "arrays, _codecs.encode with 'zip'"),
    ],
)
def test_pickles_of_more_than_plain_arrays_are_refused(
    value: object, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": value}}, protocol=4))
    with pytest.raises(ValueError, match=message):
        refuse_code_in_pickle(str(path))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"U\x08\x00\x00\x80?\x00\x00\x00@", b"U\x04\x00\x00\x80?"),  # half of the data
        (b"K\x01K\x02\x85", b"K\x01K\x03\x85"),  # another shape
        (b"K\x00\x85U\x01b", b"K\x09\x85U\x01b"),  # an array that is not empty before
        (b"U\x02f4", b"U\x02O8"),
        (b"\x89U\x08\x00\x00\x80?\x00\x00\x00@t", b"\x89]t"),  # a list, as of objects
        (b"K\x03U\x01<NNN", b"K\x03U\x01<N]}"),  # names and fields of a structure
    ],
)
def test_arrays_must_be_what_they_say(old: bytes, new: bytes, tmp_path: Path) -> None:
    assert old in OLD_PICKLE
    path = tmp_path / "a.pkl"
    path.write_bytes(OLD_PICKLE.replace(old, new))
    with pytest.raises(ValueError, match="a.pkl' is refused: it holds more than plain arrays"):
        refuse_code_in_pickle(str(path))


def test_classes_of_other_packages_are_named(tmp_path: Path) -> None:
    path = saved({"state_dict": {}, "log": collections.deque([1])}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="more than tensors, loading it would run collections.deq"):
        load_tensors(path)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_truncated_files_are_refused(old: bool, share: float, tmp_path: Path) -> None:
    path = saved(foreign_checkpoint("mmdet"), tmp_path / "a.pth", old)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match="a.pth' is truncated or no checkpoint of torch.save: .+"):
        load_tensors(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\n<!DOCTYPE html><html>Virus scan warning", "a web page, not a checkpoint"),
        (b"version https://git-lfs", "truncated or no checkpoint of torch.save"),
    ],
)
def test_other_files_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        load_tensors(str(path))
    assert "weights_only" not in str(error.value)  # no advice to load it unsafely


def test_missing_file_stays_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_tensors(str(tmp_path / "a.pth"))


# ------------------------------------------------------------------------------------- converting


def test_converted_file_is_complete_and_recorded(tmp_path: Path) -> None:
    path, out = save_foreign("official", tmp_path / "a.pth"), tmp_path / "new" / "b.pth"
    record = convert_file(str(path), str(out))
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["bytes"] == path.stat().st_size
    assert (record["file"], record["source"]) == ("a.pth", "maskrcnn_benchmark")
    content = load_tensors(str(out))
    assert content["converted_from"] == record
    expected = convert_checkpoint(foreign_checkpoint("official"))
    torch.testing.assert_close(content["model"], expected, rtol=0, atol=0)
    assert [x.name for x in out.parent.iterdir()] == ["b.pth"]  # no temporary file is left


def test_nothing_is_written_of_what_cannot_be_converted(tmp_path: Path) -> None:
    path = saved({"a.weight": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="a.pth': this checkpoint is from none of the known"):
        convert_file(path, str(tmp_path / "b.pth"))
    assert [x.name for x in tmp_path.iterdir()] == ["a.pth"]


def test_tool(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, out = save_foreign("mmdet", tmp_path / "a.pth"), tmp_path / "b.pth"
    assert tool.main([str(path), str(out)]) == 0
    printed = capsys.readouterr().out
    assert "dropped 53: backbone.bn1.num_batches_tracked" in printed
    assert hashlib.sha256(path.read_bytes()).hexdigest() in printed
    config = "Imported/mmdet_double_head_rcnn_R_50_FPN_1x.yaml"
    assert printed.endswith(f"with {config} and MODEL.ROI_HEADS.NUM_CLASSES 5.\n")
    assert set(load_tensors(str(out))) == {"model", "converted_from"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["missing.pth", "b.pth"], "No such file or directory: .*missing.pth"),
        (["a.pth", "a.pth"], "a.pth', which exists; remove it or choose another name"),
        (["a.pth", "b.pkl"], "b.pkl'; allowed: a name ending in .pth"),
        (["a.pth", "b.pth", "--source", "mmdet"], "not a Double-Head R-CNN of mmdetection"),
    ],
)
def test_tool_refuses(
    names: list, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_foreign("official", tmp_path / "a.pth")
    before = (tmp_path / "a.pth").read_bytes()
    words = [x if x.startswith("--") or x == "mmdet" else str(tmp_path / x) for x in names]
    assert tool.main(words) == 1
    assert re.search(message, capsys.readouterr().err)
    assert (tmp_path / "a.pth").read_bytes() == before
    assert not (tmp_path / "b.pth").exists()
