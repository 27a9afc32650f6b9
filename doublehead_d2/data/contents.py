"""What is in a data set, and whether a run can use all of it."""

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from doublehead_d2.data import image_files, kinds
from doublehead_d2.data.coco_file import inspect_coco_file
from doublehead_d2.data.findings import Contents, Findings, Use
from doublehead_d2.data.layouts.dataset import OwnDataset
from doublehead_d2.data.records import inspect_records
from doublehead_d2.data.voc_files import inspect_voc_files

LOADERS = {
    "detectron2.data.datasets.coco": inspect_coco_file,
    "detectron2.data.datasets.pascal_voc": inspect_voc_files,
}


def inspect_dataset(name: str, use: Use) -> Contents:
    """Look at the annotations of a data set, and at the headers of its images.

    Annotations are read once, all of them; headers of up to `image_files.MOST` images.

    Args:
        name: of a registered data set whose files are there.
        use: what a run does with it.

    Returns:
        its contents; the notes name the data set.

    Raises:
        ValueError: says what the run would stumble over, or what would give wrong numbers: the
            file, the record, its value and what is allowed.
    """
    findings = Findings(where_is(name))
    contents = inspect_annotations(name, use, findings)
    image_files.inspect_images(contents.images, findings, most=image_files.MOST)
    findings.refuse()
    contents.notes = [f"{findings.where}: {note}." for note in findings.notes()]
    return contents


def inspect_annotations(name: str, use: Use, findings: Findings) -> Contents:
    """Look at the annotations of a data set.

    Args:
        name: of a registered data set whose files are there.
        use: what a run does with it.
        findings: what is found is added to them.

    Raises:
        ValueError: as :func:`inspect_dataset`; where all is reported, only if nothing can be looked
            at beyond the fault.
    """
    metadata = MetadataCatalog.get(name)
    dataset = DatasetCatalog[name]
    loader = getattr(dataset, "__module__", "")
    if isinstance(dataset, OwnDataset):
        contents = dataset.inspect(use, findings)
    elif loader in LOADERS:
        contents = LOADERS[loader](metadata, use, findings)
    elif loader.startswith("detectron2."):  # data sets of others, which take minutes to load
        contents = Contents(list(metadata.get("thing_classes", [])), objects=None)
    else:
        # Who else loads COCO's or VOC's layout may read more, or less, than detectron2 does.
        contents = inspect_records(name, use, findings)
    if use.evaluation in ("coco", "pascal_voc") and contents.objects == 0:
        findings.add(
            kinds.NOTHING_TO_SCORE,
            "it has no object to score detections against, and AP would be nan; allowed: one "
            "object or more that is neither crowd nor difficult",
        )
    findings.refuse()
    return contents


def where_is(name: str) -> str:
    """A data set and its file or folder, as messages begin."""
    return f"Data set '{name}'" + _place(MetadataCatalog.get(name))


def _place(metadata: Metadata) -> str:
    place = next(
        (x for key in ("json_file", "dirname", "data_file") if (x := metadata.get(key))), ""
    )
    return f" ({place})" if place else ""
