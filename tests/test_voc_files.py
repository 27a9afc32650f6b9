"""Faults of folders in VOC's layout, for training and for VOC's metric."""

from collections.abc import Callable
from pathlib import Path

import pytest

from doublehead_d2.engine import check_run
from places import Place, cfg_for, notes_of, refusal, replace


def in_first(old: str, new: str) -> Callable[[Path], None]:
    """Change the annotation of the first image of both splits."""

    def edit(folder: Path) -> None:
        for name in ("train_000001", "val_000001"):
            replace(folder / "Annotations" / f"{name}.xml", old, new)

    return edit


def first_box(folder: Path, value: str) -> None:
    for name in ("train_000001", "val_000001"):
        path = folder / "Annotations" / f"{name}.xml"
        text = path.read_text()
        start = text.index("<xmin>") + len("<xmin>")
        path.write_text(text[:start] + value + text[text.index("</xmin>") :])


VOC_FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (in_first("<height>128</height>", ""), "it has no <size><height>, which detectron2 needs"),
    (in_first("</annotation>", ""), "train_000001.xml': no element found|unclosed token|mismatch"),
    (lambda f: first_box(f, "nan"), r"an object has the box \['nan', .*allowed: finite"),
    (lambda f: first_box(f, "1e30"), r"an object has the box \['1e30', "),
    (lambda f: first_box(f, "left"), r"an object has the box \['left', "),
    (in_first("<name>", "<called>"), "mismatched tag"),
    (lambda f: (f / "Annotations/train_000002.xml").unlink(), "train_000002.xml': No such file"),
    (lambda f: (f / "ImageSets/Main/trainval.txt").write_text("train_000001\n"), "has one line"),
    (
        lambda f: (f / "ImageSets/Main/trainval.txt").write_text("train_000001 1\ntrain_000002 -1"),
        "has the line 'train_000001 1'; allowed: the name of an image alone",
    ),
]


@pytest.mark.parametrize(("edit", "message"), VOC_FAULTS)
def test_faults_of_a_voc_folder(place: Place, edit: Callable, message: str) -> None:
    train, _ = place.voc(edit)
    with pytest.raises(ValueError, match=message) as error:
        check_run(cfg_for(place, train, ()))
    assert str(error.value).startswith(f"Data set '{train}' ({place.folder}/voc_1): ")


def test_a_voc_class_that_is_not_in_the_list(place: Place) -> None:
    train, _ = place.voc(classes=["circle", "rectangle"])
    message = refusal(place, train, (), "MODEL.ROI_HEADS.NUM_CLASSES", 2)
    assert "is of class 'triangle'; allowed: ['circle', 'rectangle']" in message
    assert f"{place.folder}/voc_1/Annotations/train_0000" in message


EVALUATION_FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (in_first("<difficult>0</difficult>", ""), "an object has no <difficult>"),
    (in_first("<truncated>", "<cut>"), "mismatched tag"),
    (in_first("<difficult>0", "<difficult>no"), "an object has <difficult> 'no'; allowed: 0 and 1"),
    (lambda f: first_box(f, "7.5"), r"an object has the box \['7.5', .*; allowed: whole numbers"),
]


@pytest.mark.parametrize(("edit", "message"), EVALUATION_FAULTS)
def test_what_the_voc_metric_needs(place: Place, edit: Callable, message: str) -> None:
    train, test = place.voc(edit)
    with pytest.raises(ValueError, match=message):
        check_run(cfg_for(place, (), test), eval_only=True)
    if "mismatched" not in message:  # detectron2 trains on them
        assert notes_of(place, train, ()) == ""


def test_an_empty_line_in_the_list_of_a_voc_test_set(place: Place) -> None:
    def edit(folder: Path) -> None:
        for split in ("trainval", "test"):
            path = folder / f"ImageSets/Main/{split}.txt"
            path.write_text(path.read_text() + "\n")

    train, test = place.voc(edit)
    assert "test.txt': line 5 is empty" in refusal(place, train, test)
    assert notes_of(place, train, ()) == ""


def test_a_year_without_a_metric(place: Place) -> None:
    train, test = place.voc(year=2010)
    assert "with the year 2010; allowed: 2007 and 2012" in refusal(place, train, test)
    assert notes_of(place, train, ()) == ""


def make_difficult(folder: Path) -> None:
    for path in (folder / "Annotations").iterdir():
        replace(path, "<difficult>0", "<difficult>1", count=-1)


def test_difficult_objects(place: Place) -> None:
    train, test = place.voc(make_difficult)
    assert notes_of(place, train, ()) == ""
    assert "no object to score detections against" in refusal(place, train, test)
    # Nor where the same data set is trained on, too.
    assert "no object to score detections against" in refusal(place, train, train)


@pytest.mark.parametrize(("year", "ap"), [(2007, "0, and"), (2012, "0, or nan once it")])
def test_classes_without_objects_in_a_voc_test_set(place: Place, year: int, ap: str) -> None:
    def edit(folder: Path) -> None:
        for path in (folder / "Annotations").glob("val_*"):
            path.write_text(path.read_text().replace("<name>circle", "<name>triangle"))

    notes = notes_of(place, *place.voc(edit, year=year))
    assert f"no object of ['circle']: VOC's metric gives each of them AP {ap}" in notes
