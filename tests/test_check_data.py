"""The report on data sets: what is found, what is said of it, and that training does so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from test_image_files import oriented

from doublehead_d2.data.findings import Use
from doublehead_d2.data.naming_mapper import NamingMapper, RecordError
from doublehead_d2.data.report import report_on
from doublehead_d2.data.resize import build_mapper
from doublehead_d2.engine import Trainer, check_run
from doublehead_d2.tools.check_data import main
from places import CLASSES, Data, Edit, Place, cfg_for, replace, set_in, without

NAN = float("nan")


def found_in(name: str, *, decode: bool = False, evaluation: str = "coco") -> dict[str, Any]:
    """(count, examples) by the key of the kind."""
    one = report_on({name: Use(training=True, evaluation=evaluation)}, decode=decode)[name]
    return {kind.key: (x.count, x.first) for kind, x in one.findings.groups.items()}


def counts_in(name: str, **more: Any) -> dict[str, int]:
    return {key: count for key, (count, _) in found_in(name, **more).items()}


def both(*edits: Edit) -> Edit:
    return lambda data: [edit(data) for edit in edits]


# -- what is found ---------------------------------------------------------------------------------


def repeat_box(data: Data) -> None:
    data["annotations"].append({**data["annotations"][0], "id": 777})


def repeat_image_record(data: Data) -> None:
    data["images"].append(dict(data["images"][0]))


def without_triangles(data: Data) -> None:
    data["annotations"] = [x for x in data["annotations"] if x["category_id"] != 3]


DAMAGES: list[tuple[Edit, dict[str, int]]] = [
    (lambda data: None, {}),
    (set_in("annotations", "bbox", [5, 5, 0, 9]), {"box_zero_area": 1}),
    (set_in("annotations", "bbox", [15, 5, -9, 9]), {"box_inverted": 1}),
    (set_in("annotations", "bbox", [5000, 5, 9, 9]), {"box_outside": 1}),
    (set_in("annotations", "bbox", [-5, 5, 9, 9]), {"box_partly_outside": 1}),
    (set_in("annotations", "bbox", [NAN, 5, 9, 9]), {"box_not_finite": 1}),
    (set_in("annotations", "bbox", [5, 9, 9]), {"no_box": 1}),
    (repeat_box, {"repeated_box": 1}),
    (repeat_image_record, {"repeated_image_record": 1}),
    (set_in("annotations", "id", 1, index=1), {"repeated_annotation_id": 1}),
    (set_in("annotations", "category_id", 9), {"unknown_category": 1}),
    (set_in("annotations", "image_id", 999), {"orphan_annotation": 1}),
    (without("annotations", "bbox"), {"broken_record": 1}),
    (without("annotations", "iscrowd"), {"gaps": 1}),
    (set_in("images", "id", 2), {"repeated_image_id": 1}),
    (set_in("images", "width", 0), {"impossible_size": 1}),
    (set_in("images", "width", 99), {"other_size": 1}),
    (set_in("images", "file_name", "gone.jpg"), {"missing_image": 1}),
    (set_in("categories", "id", 2), {"repeated_category": 1}),
    (lambda d: d["categories"].append({"id": 9, "name": "bus"}), {"class_without_objects": 1}),
    (without_triangles, {"class_without_objects": 1}),
]


@pytest.mark.parametrize(("edit", "expected"), DAMAGES)
def test_each_kind_of_damage_to_a_coco_file(
    place: Place, edit: Edit, expected: dict[str, int]
) -> None:
    found = counts_in(place.coco("train", edit))
    # What follows from the damage comes with it: images and classes left without objects.
    consequences = {"image_without_objects", "orphan_annotation", "unknown_category"}
    assert expected.items() <= found.items()
    assert found.keys() - expected.keys() <= consequences


def test_all_faults_are_found_at_once_not_the_first_stage_of_them(place: Place) -> None:
    edits = [
        *(set_in("annotations", "bbox", [NAN] * 4), set_in("annotations", "category_id", 9, 1)),
        *(without("images", "height", 2), set_in("images", "width", 99, 3)),
        without("categories", "name", 2),
    ]
    found = found_in(place.coco("train", both(*edits)))
    assert {"box_not_finite", "unknown_category", "broken_record", "other_size"} <= found.keys()
    assert any(
        "image 3 ('train_000003.jpg') has no 'height'" in x for x in found["broken_record"][1]
    )
    assert "orphan_annotation" not in found  # the image is there, though at fault


def test_annotations_that_are_no_records_keep_nothing_from_being_found(place: Place) -> None:
    def edit(data: Data) -> None:
        data["annotations"] += [5, {"bbox": [1, 2, 3, 4]}]
        del data["annotations"][0]["iscrowd"]

    found = counts_in(place.coco("train", edit))
    assert found == {"broken_record": 2, "gaps": 1}


@pytest.mark.parametrize("text", ['{"images": [1,\n 2', "[]", '{"images": 5}'])
def test_what_cannot_be_read_is_a_fault_with_its_place(place: Place, text: str) -> None:
    name = place.coco_text("train", text)
    one = report_on({name: Use(training=True)})[name]
    assert one.findings.refuses and not one.is_whole
    if text.startswith('{"images": [1'):
        ((group),) = one.findings.groups.values()
        assert "line 2 column 3" in group.first[0] and not group.first[0].startswith("Data set")


def test_images_of_each_kind(place: Place) -> None:
    folder = place.changed_images(lambda path: None)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8))
    names = [f"train_{number:06}.jpg" for number in range(1, 7)]
    modes = ["L", "RGBA", "P", "1", "CMYK"]
    for name, mode in zip(names, modes, strict=False):
        noise.convert(mode).save(folder / f"{name}.tif")
    oriented(3, (128, 128))(folder / names[5])

    def edit(data: Data) -> None:
        for image in data["images"][:5]:
            image["file_name"] += ".tif"

    found = counts_in(place.coco("train", edit, folder))
    assert found == dict.fromkeys(
        ("gray", "transparent", "palette", "black_and_white", "cmyk", "turned"), 1
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_decoding_finds_what_headers_do_not_tell(place: Place) -> None:
    name = place.coco("train", None, place.changed_images(cut))
    assert counts_in(name) == {}
    found = found_in(name, decode=True)
    assert list(found) == ["damaged_image"] and found["damaged_image"][0] == 1
    assert (
        "train_000001.jpg' cannot be read: OSError: image file is truncated"
        in (found["damaged_image"][1][0])
    )


def test_a_damaged_png_is_read_in_part_without_a_word(place: Place) -> None:
    def damage(path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
        Image.fromarray(noise).save(path.with_suffix(".png"))
        data = bytearray(path.with_suffix(".png").read_bytes())
        data[len(data) // 2 :][:40] = data[len(data) // 2 : len(data) // 2 + 40] = b"\0" * 40
        path.with_suffix(".png").write_bytes(data)

    edit = set_in("images", "file_name", "train_000001.png")
    name = place.coco("train", edit, place.changed_images(damage))
    assert counts_in(name, decode=True) == {"damaged_png": 1}
    assert build_mapper(cfg_for(place, name, ()), False)(DatasetCatalog.get(name)[0])  # it is read


def test_12_bits_in_16_are_told_when_decoded(place: Place) -> None:
    gray = np.full((128, 128), 4095, np.uint16)
    images = place.changed_images(lambda path: Image.fromarray(gray).save(path.with_suffix(".png")))
    name = place.coco("train", set_in("images", "file_name", "train_000001.png"), images)
    assert counts_in(name) == {"gray_16_bits": 1}
    assert counts_in(name, decode=True) == {"gray_16_bits": 1, "dark_16_bits": 1}


VOC_DAMAGES: list[tuple[str, str, str]] = [
    ("</annotation>", "", "broken_file"),
    ("<name>", "<called>", "broken_file"),
    ("<width>128", "<width>9", "other_size"),
    ("<width>128", "<width>wide", "impossible_size"),
    ("<height>128</height>", "", "broken_record"),
]


@pytest.mark.parametrize(("old", "new", "key"), VOC_DAMAGES)
def test_damage_to_voc_files(place: Place, old: str, new: str, key: str) -> None:
    def edit(folder: Path) -> None:
        replace(folder / "Annotations/train_000001.xml", old, new)

    found = found_in(place.voc(edit)[0], evaluation="pascal_voc")
    assert found[key][0] == 1 and "train_000001" in found[key][1][0]
    if key == "broken_file":  # the place in it
        assert "line " in found[key][1][0] and "column " in found[key][1][0]


def test_boxes_of_voc_files_and_of_own_functions(place: Place) -> None:
    def edit(folder: Path) -> None:
        path = folder / "Annotations/train_000001.xml"
        text = path.read_text()
        start = text.index("<xmin>") + len("<xmin>")
        path.write_text(text[:start] + "900" + text[text.index("</xmin>") :])

    assert "box_inverted" in counts_in(place.voc(edit)[0]) or "box_outside" in counts_in(
        place.voc(edit)[0]
    )
    path = str(place.images("train") / "train_000001.jpg")
    boxes = [[5, 5, 5, 9], [5, 5, 9, 9], [5, 5, 9, 9], [-9, 5, 9, 9]]
    objects = [{"bbox": x, "bbox_mode": 0, "category_id": 0} for x in boxes]
    record = {"file_name": path, "height": 128, "width": 128, "image_id": 1, "annotations": objects}
    DatasetCatalog.register("test_own", lambda: [record])
    MetadataCatalog.get("test_own").thing_classes = CLASSES
    assert counts_in("test_own") == {
        "box_zero_area": 1,
        "repeated_box": 1,
        "box_partly_outside": 1,
        "class_without_objects": 2,
    }


# -- what is let through is survived ---------------------------------------------------------------


def survivors() -> list[tuple[str, Edit, Callable[[Path], object]]]:
    """A damage each that the check lets through."""
    png = set_in("images", "file_name", "train_000001.png")
    gray = Image.fromarray(np.full((128, 128), 40_000, np.uint16))
    as_is = lambda path: None  # noqa: E731
    files: list[tuple[str, Edit, Callable[[Path], object]]] = [
        (f"file {mode}", png, lambda p, m=mode: save_as(p, m))
        for mode in ("L", "LA", "RGBA", "P", "1")
    ]
    files += [
        ("16 bits", png, lambda path: gray.save(path.with_suffix(".png"))),
        ("turned", lambda data: None, oriented(6, (128, 128))),
        ("cmyk", lambda data: None, lambda p: Image.new("CMYK", (128, 128)).save(p)),
    ]
    boxes = [[5, 5, 0, 9], [15, 5, -9, 9], [5, 15, 9, -9], [5000, 5, 9, 9], [-5, -5, 400, 400]]
    files += [(f"box {x}", set_in("annotations", "bbox", x), as_is) for x in boxes]
    edits = {
        "orphan": set_in("annotations", "image_id", 999),
        "repeated box": repeat_box,
        "repeated image": repeat_image_record,
        "no class": without_triangles,
        "gaps": both(without("annotations", "iscrowd"), without("annotations", "area", 1)),
        "no object": lambda d: d.update(annotations=d["annotations"][-1:]),
    }
    return files + [(name, edit, as_is) for name, edit in edits.items()]


def save_as(path: Path, mode: str) -> None:
    with Image.open(path) as image:
        image.convert(mode).save(path.with_suffix(".png"))


@pytest.mark.parametrize(("edit", "damage"), [x[1:] for x in survivors()],
                         ids=[x[0] for x in survivors()])  # fmt: skip
def test_what_the_check_lets_through_the_loader_survives(
    place: Place, edit: Edit, damage: Callable[[Path], object]
) -> None:
    name = place.coco("train", edit, place.changed_images(damage))
    keep = ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", False]
    cfg = cfg_for(place, name, (), *keep)
    check_run(cfg)
    for is_train in (True, False):
        mapper = NamingMapper(build_mapper(cfg, is_train))
        for record in DatasetCatalog.get(name):
            mapped = mapper(record)
            assert mapped is not None and mapped["image"].shape[0] == 3
            if is_train:
                boxes = mapped["instances"].gt_boxes
                assert boxes.tensor.isfinite().all() and boxes.nonempty().all()


# -- the tool --------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str, str]:
    status = main(words)
    out, err = capsys.readouterr()
    return status, out, err


def test_a_sound_data_set(place: Place, capsys: pytest.CaptureFixture) -> None:
    name = place.coco("train")
    status, out, err = run(capsys, name, "--strict", "--decode")
    data = json.loads((place.folder / f"{name}.json").read_text())
    assert (status, err) == (0, "")
    assert f"Data set '{name}' ({place.folder / name}.json)\n  6 images, the least 128 x 128" in out
    assert f"{len(data['annotations'])} objects of 3 classes: circle " in out
    assert "nothing to say" in out and out.endswith("A training takes it.\n")


def test_notes_are_no_refusal_unless_strict(place: Place, capsys: pytest.CaptureFixture) -> None:
    name = place.coco("train", set_in("annotations", "bbox", [5, 5, 0, 9]))
    status, out, _ = run(capsys, name)
    assert status == 0 and "A training takes it; the notes deserve a look." in out
    assert "  note  1  boxes of no width or no height: dropped (they hold no pixel" in out
    assert "annotation 1 of image 1, [5, 5, 0, 9]" in out
    assert run(capsys, name, "--strict")[0] == 1
    # How an image is read is none.
    images = place.changed_images(lambda path: save_as(path, "L"))
    name = place.coco("train", set_in("images", "file_name", "train_000001.png"), images)
    status, out, _ = run(capsys, name, "--strict")
    assert status == 0 and "  info  1  gray images: read as colour" in out


def test_faults_are_a_refusal(place: Place, capsys: pytest.CaptureFixture) -> None:
    nan = set_in("annotations", "bbox", [NAN] * 4)
    name = place.coco("train", both(nan, set_in("annotations", "bbox", [5, 5, 0, 9], 1)))
    path = place.folder / "found.json"
    status, out, _ = run(capsys, name, "--json", str(path))
    assert status == 1 and out.endswith("refused until the faults are mended.\n")
    found = json.loads(path.read_text())
    assert found["refused"] is True and found["between"] == []
    (one,) = found["datasets"]
    assert (one["name"], one["images"], one["is_whole"]) == (name, 6, True)
    assert set(one["classes"]) == set(CLASSES)
    kind, *_ = one["findings"]
    assert (kind["kind"], kind["severity"], kind["count"]) == ("box_not_finite", "fault", 1)
    assert kind["training"] == "refused" and "annotation 1 of image 1 has bbox" in kind["first"][0]
    assert one["findings"][1]["kind"] == "box_zero_area"


def test_the_same_image_and_classes_of_one_side(
    place: Place, capsys: pytest.CaptureFixture
) -> None:
    train, test = place.coco("train"), place.coco("train", without_triangles)
    status, out, _ = run(capsys, train, test)
    assert status == 0
    assert f"'{train}' and '{test}'\n" in out
    assert "  note  6  images that are in both: used (a score on what was trained on" in out
    assert "'triangle' has" in out and f"in '{train}' and none in '{test}'" in out
    assert "images with the content of another one" not in out
    images = place.changed_images(
        lambda path: path.write_bytes((path.parent / "train_000002.jpg").read_bytes())
    )
    status, out, _ = run(capsys, place.coco("train", None, images))
    assert "  note  1  images with the content of another one of the set: used, each" in out
    assert f"'{images}/train_000002.jpg', as '{images}/train_000001.jpg'" in out


def words(train: str, test: str, *opts: object) -> list[str]:
    lists = ["DATASETS.TRAIN", f"({train!r},)", "DATASETS.TEST", f"({test!r},)"]
    return ["--config-file", "Shapes-Detection/double_head_ext_rcnn_tiny.yaml", "--opts", *lists,
            *map(str, opts)]  # fmt: skip


def test_the_data_sets_of_a_config(place: Place, capsys: pytest.CaptureFixture) -> None:
    train, test = place.coco("train"), place.coco("val")
    status, out, _ = run(capsys, *words(train, test))
    assert status == 0 and f"Data set '{train}'" in out and f"Data set '{test}'" in out

    def order(data: Data) -> None:
        for category, name in zip(data["categories"], reversed(CLASSES), strict=True):
            category["name"] = name

    status, out, _ = run(capsys, *words(train, place.coco("val", order)))
    assert status == 1 and "The run\n" in out and "the order differs" in out
    status, out, _ = run(capsys, *words(train, test, "MODEL.ROI_HEADS.NUM_CLASSES", 80))
    assert status == 1 and "NUM_CLASSES is 80" in out
    status, out, _ = run(
        capsys, *words(train, place.coco("val", set_in("categories", "name", "o")))
    )
    assert status == 0 and "those at the same place are taken as the same" in out


def test_masks_matter_to_the_config_that_uses_them(
    place: Place, capsys: pytest.CaptureFixture
) -> None:
    train = place.coco("train", without("annotations", "segmentation"))
    assert run(capsys, *words(train, place.coco("val")))[0] == 0
    status, out, _ = run(capsys, *words(train, place.coco("val"), "MODEL.MASK_ON", True))
    assert status == 1 and "masks that the model cannot use" in out


def test_a_test_set_that_nobody_can_score(place: Place, capsys: pytest.CaptureFixture) -> None:
    test = place.coco("val")
    del MetadataCatalog.get(test).evaluator_type
    status, out, _ = run(capsys, *words(place.coco("train"), test))
    assert status == 1 and "test sets that nobody can score" in out


def test_own_data_on_the_command_line(place: Place, capsys: pytest.CaptureFixture) -> None:
    path = place.folder / f"{place.coco('train')}.json"
    status, out, _ = run(capsys, "--dataset", f"mine=coco:{path}:{place.images('train')}")
    assert status == 0 and "Data set 'mine'" in out and "6 images" in out
    data = json.loads(path.read_text())
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]
    path.with_name("xyxy.json").write_text(json.dumps(data))
    text = f"other=coco:{path.with_name('xyxy.json')}:{place.images('train')}"
    status, out, _ = run(capsys, "--dataset", text)
    assert status == 1 and "files whose boxes look like XYXY: refused" in out
    assert "what is in it cannot be told" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to look at; give names, --dataset or --config-file"),
        (["nowhere"], "Data set 'nowhere' is not registered"),
        (["shapes_val", "--opts", "MODEL.MASK_ON", "True"], "allowed: with --config-file"),
        (["--dataset", "a=b"], "a"),
        (["--config-file", "nowhere.yaml"], "nowhere.yaml"),
        (words("", "", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"), "TEST are empty; allowed"),
    ],
)
def test_what_cannot_be_looked_at(
    options: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    status, out, err = run(capsys, *options)
    assert status == 1 and message in err and out == ""


# -- the end of a run at a damaged image -----------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_is_told_in_a_line(place: Place, workers: int) -> None:
    name = place.coco("train", None, place.changed_images(cut))
    cfg = cfg_for(place, name, (), "DATALOADER.NUM_WORKERS", workers)
    with pytest.raises(RecordError) as error:
        for _, _batch in zip(range(100), Trainer.build_train_loader(cfg), strict=False):
            pass
    line = error.value.line
    assert line.startswith("image '") and "train_000001.jpg': OSError: image file is trunc" in line
    assert "\n" not in line and ("Traceback" in str(error.value)) == bool(workers)
