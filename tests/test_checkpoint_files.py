"""Checkpoint files that run no code, downloads that go on, and published models by name."""

import codecs
import collections
import hashlib
import http.server
import json
import os
import pickle
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from doublehead_d2.checkpoint import convert_checkpoint, published
from doublehead_d2.checkpoint.download import check_hash, download, hash_in_name
from doublehead_d2.checkpoint.files import convert_file, load_tensors, refuse_code_in_pickle
from doublehead_d2.tools import convert_checkpoint as tool
from foreign import foreign_checkpoint, save_foreign, tiny_cfg

MMDET = "mmdet/dh_faster_rcnn_r50_fpn_1x_coco"
OFFICIAL = "official/dh_faster_rcnn_R_50_FPN_1x"


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
    with pytest.raises(ValueError, match=r"a.pkl' is refused: .* run \w+\.system"):
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
        (np.array([{}], dtype=object), r"run numpy.dtype\('O8'\)"),
        (np.zeros(2, [("a", "f4")]), r"run numpy.dtype\('V4'\)"),
        (Call(np.dtype, "O"), r"run numpy.dtype\('O'\)"),
        (Call(getattr, "a", "b"), "run builtins.getattr"),
        (np.datetime64("2020-01-01"), r"run numpy.dtype\('M8'\)"),
        (Call(codecs.encode, "a", "zip"), "run _codecs.encode with 'zip'"),
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
    with pytest.raises(ValueError, match="a.pkl' is refused: it holds more than tensors"):
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
    assert printed.endswith("with Imported/mmdet_double_head_rcnn_R_50_FPN_1x.yaml.\n")
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


# ------------------------------------------------------------------------------------ downloading


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; breaks off after `limit` bytes of an answer; notes where answers began."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.limit: int | None = None
        self.ranges = True
        self.starts: list[int] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        data = self.server.files.get(self.path[1:])
        if data is None:
            return self.send_error(404)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked and self.server.ranges else 0
        if start >= len(data):
            return self.send_error(416)
        self.server.starts.append(start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: self.server.limit])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def hashed(data: bytes, stem: str = "model") -> str:
    return f"{stem}-{hashlib.sha256(data).hexdigest()[:8]}.pth"


DATA = bytes(range(256)) * 40


def test_hash_in_name() -> None:
    assert hash_in_name("https://x.org/a/dh_20200130-586b67df.pth") == "586b67df"
    assert hash_in_name("model_final_b275ba.pkl") is None
    assert hash_in_name("model-r50.pth") is None


def test_download(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name = hashed(DATA)
    server.files[name] = DATA
    path = tmp_path / "cache" / name
    for _ in range(2):
        assert download(server.url(name), str(path)) == str(path)
    assert path.read_bytes() == DATA
    assert server.starts == [0]  # the second time nothing is fetched
    assert "100%" in capsys.readouterr().err  # the progress bar


@pytest.mark.parametrize("ranges", [True, False])
def test_download_goes_on_where_it_stopped(ranges: bool, server: Server, tmp_path: Path) -> None:
    name = hashed(DATA)
    server.files[name], server.limit, server.ranges = DATA, 4000, ranges
    path = tmp_path / name
    with pytest.raises(OSError, match=r"closed after 4000 of 10240 .*\(4000 bytes are kept"):
        download(server.url(name), str(path))
    assert not path.exists()  # what is incomplete is never under the file's name
    server.limit = None
    download(server.url(name), str(path))
    assert path.read_bytes() == DATA
    assert server.starts == [0, 4000 if ranges else 0]
    assert not Path(f"{path}.part").exists()


def test_complete_part_needs_no_more_bytes(server: Server, tmp_path: Path) -> None:
    name = hashed(DATA)
    server.files[name] = DATA
    (tmp_path / f"{name}.part").write_bytes(DATA)
    download(server.url(name), str(tmp_path / name))
    assert server.starts == [] and (tmp_path / name).read_bytes() == DATA


@pytest.mark.parametrize("part", [b"", b"x" * 100, b"x" * 20000])
def test_other_content_is_refused_and_removed(part: bytes, server: Server, tmp_path: Path) -> None:
    name = hashed(DATA)
    server.files[name] = DATA if part else DATA[::-1]
    if part:
        (tmp_path / f"{name}.part").write_bytes(part)
    with pytest.raises(ValueError, match=r"SHA-256 \w{64}; its name asks for \w{8}\.\.\. .*rem"):
        download(server.url(name), str(tmp_path / name))
    assert not [x for x in tmp_path.iterdir() if not x.name.endswith(".lock")]


def test_download_that_cannot_start_says_what_to_do(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "model-00000000.pth"
    with pytest.raises(OSError, match=f"HTTP Error 404: .* save it as {path}"):
        download(server.url("nothing"), str(path))
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="cannot download .* Try again, or get the file"):
        download(server.url("nothing"), str(path))


def test_damaged_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / hashed(DATA)
    path.write_bytes(DATA[:-1])
    with pytest.raises(ValueError, match="it is damaged or another file. Remove it"):
        check_hash(str(path))


# --------------------------------------------------------------------------------- doublehead://


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "doublehead_d2"


@pytest.fixture
def mmdet_server(
    server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Server:
    """Serves a small model in place of mmdetection's."""
    data = save_foreign("mmdet", tmp_path / "original.pth").read_bytes()
    name = hashed(data, "dh_20200130")
    server.files[name] = data
    entry = published.PUBLISHED[MMDET]._replace(file=name, address=server.url(name))
    monkeypatch.setitem(published.PUBLISHED, MMDET, entry)
    return server


def put_official(cache: Path, name: str = OFFICIAL) -> Path:
    folder = cache / "official"
    folder.mkdir(parents=True, exist_ok=True)
    return save_foreign("official", folder / published.PUBLISHED[name].file)


def converted_by_hand(source: str) -> dict:
    return convert_checkpoint(foreign_checkpoint(source))


def test_published_model_by_name_in_the_stock_checkpointer(mmdet_server: Server) -> None:
    model = build_model(tiny_cfg("mmdet"))
    for _ in range(2):
        DetectionCheckpointer(model).load(f"doublehead://{MMDET}")
    torch.testing.assert_close(dict(model.state_dict()), converted_by_hand("mmdet"))
    assert mmdet_server.starts == [0]


def test_interrupted_download_is_not_converted(mmdet_server: Server, cache: Path) -> None:
    mmdet_server.limit = 3000
    with pytest.raises(OSError, match="3000 bytes are kept"):
        published.local_path(MMDET)
    assert not list(cache.rglob("*.pth"))
    mmdet_server.limit = None
    assert os.path.isfile(published.local_path(MMDET))
    assert mmdet_server.starts == [0, 3000]


def test_damaged_copy_in_the_cache_is_refused(mmdet_server: Server, cache: Path) -> None:
    path = cache / "mmdet" / published.PUBLISHED[MMDET].file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="its name asks for"):
        published.local_path(MMDET)


def test_authors_file_is_asked_for_with_link_and_folder(cache: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        PathManager.get_local_path(f"doublehead://{OFFICIAL}")
    message = str(error.value)
    assert "https://drive.google.com/open?id=1KnRoyJQjS9rQUTCFEm54AIsUy2qbZTK_" in message
    assert str(cache / "official" / "dh_faster_rcnn_R_50_FPN_1x.pth") in message


def test_authors_file_is_taken_from_the_cache(cache: Path) -> None:
    original = put_official(cache)
    path = Path(PathManager.get_local_path(f"doublehead://{OFFICIAL}"))
    content = load_tensors(str(path))
    torch.testing.assert_close(content["model"], converted_by_hand("official"))
    sha256 = hashlib.sha256(original.read_bytes()).hexdigest()
    assert json.loads(path.with_suffix(".json").read_text())["sha256"] == sha256
    with PathManager.open(f"doublehead://{OFFICIAL}", "rb") as f:
        assert f.read() == path.read_bytes()


def test_conversion_happens_once_and_again_for_another_file(cache: Path) -> None:
    original = put_official(cache)
    path = Path(published.local_path(OFFICIAL))
    first = path.stat().st_mtime_ns
    published.local_path(OFFICIAL)
    assert path.stat().st_mtime_ns == first
    checkpoint = foreign_checkpoint("official")
    key = "module.roi_heads.box.predictor.cls_score_fc.bias"
    checkpoint["model"][key] = torch.arange(6.0)
    torch.save(checkpoint, original)
    bias = load_tensors(published.local_path(OFFICIAL))["model"][
        "roi_heads.box_predictor.cls_score.bias"
    ]
    assert bias.tolist() == [1, 2, 3, 4, 5, 0]
    original.unlink()  # the converted file is enough
    assert published.local_path(OFFICIAL) == str(path)


@pytest.mark.parametrize("record", [None, "", '{"file": '])
def test_conversion_that_was_interrupted_is_made_again(record: str | None, cache: Path) -> None:
    put_official(cache)
    path = Path(published.local_path(OFFICIAL))
    path.write_bytes(b"half a file")
    if record is None:  # the record is written last
        path.with_suffix(".json").unlink()
    else:
        path.with_suffix(".json").write_text(record)
    load_tensors(published.local_path(OFFICIAL))


def test_wrong_file_in_the_cache_is_refused(cache: Path) -> None:
    put_official(cache).write_bytes(b"<html>Google Drive can't scan this file for viruses")
    with pytest.raises(ValueError, match="is a web page, not a checkpoint"):
        published.local_path(OFFICIAL)


def test_unknown_names_are_refused_with_those_known() -> None:
    with pytest.raises(ValueError, match=f"no published weights 'doublehead://x'; .*{OFFICIAL}"):
        PathManager.get_local_path("doublehead://x")
    with pytest.raises(ValueError, match="mode is 'wb'"):
        PathManager.open(f"doublehead://{OFFICIAL}", "wb")


def test_names_addresses_and_hash_of_the_published_files() -> None:
    assert list(published.PUBLISHED) == [MMDET, OFFICIAL, OFFICIAL.replace("50", "101")]
    mmdet = published.PUBLISHED[MMDET]
    assert hash_in_name(mmdet.address) == hash_in_name(mmdet.file) == "586b67df"
    assert mmdet.address.endswith(f"/v2.0/double_heads/dh_faster_rcnn_r50_fpn_1x_coco/{mmdet.file}")
