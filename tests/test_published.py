"""Published models by name: found, checked, converted once, or asked for."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from doublehead_d2 import model_zoo
from doublehead_d2.checkpoint import convert_checkpoint, published
from doublehead_d2.checkpoint.download import hash_in_name
from doublehead_d2.checkpoint.reading import load_tensors
from foreign import foreign_checkpoint, save_foreign, tiny_cfg
from servers import Server, hashed

MMDET = "mmdet/dh_faster_rcnn_r50_fpn_1x_coco"
OFFICIAL = "official/dh_faster_rcnn_R_50_FPN_1x"
TSD = "tsd/faster_rcnn_r50_fpn_TSD_1x"
TSD_MASK = "tsd/mask_rcnn_r50_fpn_TSD_1x"


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


@pytest.mark.parametrize("record", [None, "", '{"file": ', "null", "{}", "[5]"])
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


def test_another_depth_is_refused(cache: Path) -> None:
    name = OFFICIAL.replace("50", "101")
    put_official(cache, name)  # the smaller model under the larger one's name
    message = "holds a model with a ResNet-50; expected is a ResNet-101"
    with pytest.raises(ValueError, match=message):
        published.local_path(name)
    assert [x.name for x in cache.rglob("*.pth")] == [published.PUBLISHED[name].file]


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        (TSD, "tsd_mask", "with a ResNet-50 and a mask head; expected is a ResNet-50$"),
        (TSD_MASK, "tsd", "with a ResNet-50; expected is a ResNet-50 and a mask head$"),
    ],
)
def test_a_mask_head_too_many_or_too_few_is_refused(
    name: str, source: str, message: str, cache: Path
) -> None:
    folder = cache / "tsd"
    folder.mkdir(parents=True)
    save_foreign(source, folder / published.PUBLISHED[name].file)
    with pytest.raises(ValueError, match=message):
        published.local_path(name)


@pytest.mark.parametrize(("name", "source"), [(TSD, "tsd"), (TSD_MASK, "tsd_mask")])
def test_tsd_file_is_taken_from_the_cache(name: str, source: str, cache: Path) -> None:
    folder = cache / "tsd"
    folder.mkdir(parents=True)
    save_foreign(source, folder / published.PUBLISHED[name].file)
    content = load_tensors(published.local_path(name))
    torch.testing.assert_close(content["model"], converted_by_hand(source))


def test_another_number_of_classes_is_reported(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_official(cache)
    published.local_path(OFFICIAL)
    assert f"has 5 classes; 'doublehead://{OFFICIAL}' as published has 80" in caplog.text


def test_a_shared_cache_is_read_without_a_lock(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_official(cache)
    path = published.local_path(OFFICIAL)
    monkeypatch.setattr(published, "get_cache_dir", lambda: 1 / 0)  # asks for a writable folder
    monkeypatch.setattr(published, "file_lock", lambda path: 1 / 0)
    assert published.local_path(OFFICIAL) == path


def test_a_relative_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FVCORE_CACHE", "here")
    expected = str(tmp_path / "here" / "doublehead_d2")
    assert published.cache_folder() == published.cache_folder(writable=False) == expected


def test_forced_conversion(cache: Path) -> None:
    put_official(cache)
    path = Path(published.local_path(OFFICIAL))
    path.write_bytes(b"damaged")
    PathManager.get_local_path(f"doublehead://{OFFICIAL}", force=True)
    load_tensors(str(path))


def test_unknown_names_are_refused_with_those_known() -> None:
    with pytest.raises(ValueError, match=f"no published weights 'doublehead://x'; .*{OFFICIAL}"):
        PathManager.get_local_path("doublehead://x")
    with pytest.raises(ValueError, match="mode is 'wb'"):
        PathManager.open(f"doublehead://{OFFICIAL}", "wb")


def test_names_addresses_and_hash_of_the_published_files() -> None:
    tsd = [f"tsd/faster_rcnn_r{depth}_fpn_TSD_1x" for depth in (50, 101, 152)]
    detnet = "detnet/detnet59_imagenet"
    expected = [MMDET, OFFICIAL, OFFICIAL.replace("50", "101"), *tsd, TSD_MASK, detnet]
    assert list(published.PUBLISHED) == expected
    for name in (*tsd, TSD_MASK):  # files are named as their configs
        entry = published.PUBLISHED[name]
        assert entry.file == f"{name.removeprefix('tsd/')}.pth" and not entry.direct
        assert f"doublehead://{name}" == model_zoo.get_config(entry.config).MODEL.WEIGHTS
    backbones = [name for name, entry in published.PUBLISHED.items() if not entry.detector]
    assert backbones == [detnet] and published.PUBLISHED[detnet].num_classes == 1000
    mmdet = published.PUBLISHED[MMDET]
    assert hash_in_name(mmdet.address) == hash_in_name(mmdet.file) == "586b67df"
    assert mmdet.address.endswith(f"/v2.0/double_heads/dh_faster_rcnn_r50_fpn_1x_coco/{mmdet.file}")
