"""Pictures of objects that one head misses or detects twice and the other does not.

As Figures A.4 and A.5 of the Double-Head paper (https://arxiv.org/abs/1904.06493): the ground truth
and what each head and both detect, below; the region of the object enlarged, above. Boxes are XYXY
in pixels of the image.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, BoxMode, Instances

from doublehead_d2.visualize import (
    MAX_ENLARGED_SIZE,
    MIN_PICTURE_SIZE,
    ClassVisualizer,
    class_color,
    draw_ground_truth,
    draw_predictions,
    side_by_side,
)

Record = Mapping[str, Any]  # of a case, as `analysis.case_book.CaseBook.state` lists them
Box = Sequence[float]
Color = tuple[float, ...]  # RGB from 0 to 1
Labelled = tuple[Box, str, Color]

# A head that finds the object once; one that misses it or detects it twice; a proposal; what the
# other head makes of the proposal.
FOUND, FAULT, PROPOSAL, SAME = (0.2, 0.9, 0.2), (1.0, 0.15, 0.15), (1.0, 0.9, 0.1), (1.0, 1.0, 1.0)
ZOOM = 2.0  # sides of the enlarged region, in those of the object
MARGIN = 0.08  # around boxes that reach further, in sides of the region
FRAME = 3  # thickness in pixels of the picture


def draw_case(image: np.ndarray, case: Record, metadata: Metadata) -> np.ndarray:
    """Draw a case: whole images below, the region of the object enlarged above.

    Red are the frame and the box of a head that misses the object, and the box of a duplicate;
    green those that find it once; yellow the proposals of a missed object's boxes and of a
    duplicate; white is what the other head makes of the duplicate's proposal.

    Args:
        image: BGR, H x W x 3 uint8, the original one.
        case: of "cases" in `CaseBook.state()`.
        metadata: its `thing_classes` are the names, its `thing_colors` the colours.

    Returns:
        BGR picture, uint8; images are enlarged or reduced to a common height of some 384 pixels.
    """
    height, width = image.shape[:2]
    scale = min(MIN_PICTURE_SIZE / min(height, width), MAX_ENLARGED_SIZE / max(height, width))
    size = max(1, round(scale * width)), max(1, round(scale * height))
    resampling = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    whole = cv2.resize(np.ascontiguousarray(image), size, interpolation=resampling)
    region = zoom_region(case, (height, width))
    scales = np.array([size[0] / width, size[1] / height] * 2)
    below = {"ground truth": _draw_objects(whole, case, metadata, scales)}
    above = {f"{case['class']}, enlarged": _zoom(image, region, size, _truth(case, metadata))}
    for head in case["heads"]:
        color = _state_color(head)
        # Below the labels, which it would hide.
        picture = _framed(whole, np.array(region) * scales, color)
        below[head["title"]] = _draw_detections(picture, head, metadata, scales)
        zoomed = _zoom(image, region, size, _boxes(head))
        edge = (0, 0, zoomed.shape[1], zoomed.shape[0])
        above[_said(head)] = _framed(zoomed, np.array(edge), color)
    rows = [side_by_side(list(x.values()), list(x)) for x in (above, below)]
    title = (
        f"{case['kind']} ({case['reason']}): {case['class']} in {os.path.basename(case['image'])}"
    )
    return side_by_side([np.concatenate(rows)], [title])


def zoom_region(case: Record, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part of an image that is enlarged, of the image's own ratio and within it.

    It is `ZOOM` times as large as the object, or larger where the boxes of the case need it, but
    for proposals, which may be large.

    Args:
        case: as :func:`draw_case`.
        size: (height, width) of the image.
    """
    drawn = [x for head in case["heads"] for x in _boxes(head)]
    shown = [case["object"], *(box for box, _, color in drawn if color is not PROPOSAL)]
    sides = np.array(size[::-1], dtype=float)
    low, high = np.min(shown, axis=0)[:2], np.max(shown, axis=0)[2:]
    own = np.subtract(case["object"][2:], case["object"][:2])
    share = max(*(ZOOM * own / sides), *((1 + 2 * MARGIN) * (high - low) / sides))
    extent = sides * min(1.0, share)
    x0, y0 = np.clip((low + high - extent) / 2, 0, sides - extent)
    return float(x0), float(y0), float(x0 + extent[0]), float(y0 + extent[1])


def _boxes(head: Record) -> list[Labelled]:
    """What is drawn of a head in the enlarged region."""
    found, answer, repeat = head["state"] != "missed", head["answer"], head["repeat"]
    drawn: list[Labelled] = []
    if answer is not None:
        if not found:
            drawn.append((answer["proposal"], "proposal", PROPOSAL))
        drawn.append((answer["box"], _numbers(answer), FOUND if found else FAULT))
    if repeat is not None:
        drawn.append((repeat["proposal"], "proposal", PROPOSAL))
        drawn.append((repeat["box"], _numbers(repeat), FAULT))
    if head["same"] is not None:
        drawn.append((head["same"]["proposal"], "proposal", PROPOSAL))
        drawn.append((head["same"]["box"], f"from it: {_numbers(head['same'])}", SAME))
    return drawn


def _truth(case: Record, metadata: Metadata) -> list[Labelled]:
    known = metadata.get("thing_colors")
    index = case["class_id"]
    color = tuple(x / 255 for x in known[index]) if known else class_color(index)
    return [(case["object"], case["class"], color)]


def _numbers(answer: Record) -> str:
    return f"{answer['score']:.2f}, IoU {answer['iou']:.2f}"


def _said(head: Record) -> str:
    """The title of a head's enlarged region."""
    scores = [x["score"] for x in (head["answer"], head["repeat"]) if x is not None]
    said = ", ".join(f"{score:.2f}" for score in scores)
    if scores and scores[0] < head["threshold"]:
        said += f" < {head['threshold']:.2f}"
    return f"{head['title']}: {head['state']}" + (f" ({said})" if said else "")


def _state_color(head: Record) -> Color:
    return FOUND if head["state"] == "found" else FAULT


def _draw_objects(
    whole: np.ndarray, case: Record, metadata: Metadata, scales: np.ndarray
) -> np.ndarray:
    annotations = [
        {
            "bbox": (scales * x["box"]).tolist(),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": x["class_id"],
        }
        for x in case["objects"]
    ]
    return draw_ground_truth(whole, {"annotations": annotations}, metadata)


def _draw_detections(
    whole: np.ndarray, head: Record, metadata: Metadata, scales: np.ndarray
) -> np.ndarray:
    found = head["detections"]
    instances = Instances(
        whole.shape[:2],
        pred_boxes=Boxes(torch.tensor([(scales * x["box"]).tolist() for x in found])),
        scores=torch.tensor([x["score"] for x in found]),
        pred_classes=torch.tensor([x["class_id"] for x in found], dtype=torch.int64),
    )
    return draw_predictions(whole, instances, metadata, score_threshold=0.0)


def _zoom(
    image: np.ndarray, region: Box, size: tuple[int, int], boxes: Sequence[Labelled]
) -> np.ndarray:
    """A region enlarged to (width, height), with boxes on it."""
    x0, y0, x1, y1 = region
    steps = np.array([(x1 - x0) / size[0], (y1 - y0) / size[1]])  # pixels of the image a pixel
    # Places are those of pixels' middles.
    shift = np.array([x0, y0]) + steps / 2 - 0.5
    enlarged = cv2.warpAffine(
        np.ascontiguousarray(image),
        np.column_stack([np.diag(steps), shift]),
        size,
        flags=cv2.WARP_INVERSE_MAP | (cv2.INTER_CUBIC if steps.max() < 1 else cv2.INTER_LINEAR),
        borderMode=cv2.BORDER_REPLICATE,
    )
    visualizer = ClassVisualizer(enlarged[:, :, ::-1], metadata=Metadata(), scale=1.0)
    if boxes:
        # Sides along the image's border would be hidden by the frame.
        least = steps * (FRAME + 1)
        inner = np.clip(
            np.reshape([box for box, *_ in boxes], (-1, 2, 2)),
            least,
            np.array(image.shape[1::-1]) - least,
        )
        visualizer.overlay_instances(
            boxes=((inner - (x0, y0)) / steps).reshape(-1, 4),
            labels=[label for _, label, _ in boxes],
            assigned_colors=[color for *_, color in boxes],
        )
    return np.ascontiguousarray(visualizer.output.get_image()[:, :, ::-1])


def _framed(picture: np.ndarray, box: np.ndarray, color: Color) -> np.ndarray:
    """A picture with a frame just within a box."""
    x0, y0, x1, y1 = (round(x) for x in box.tolist())
    inner = FRAME // 2
    bgr = tuple(round(255 * x) for x in color[::-1])
    corners = (x0 + inner, y0 + inner), (x1 - 1 - inner, y1 - 1 - inner)
    return cv2.rectangle(picture.copy(), *corners, bgr, FRAME)
