"""The kinds of what can be found in a data set, and what a run does about each."""

from typing import NamedTuple

FIRST = "{count}, the first is {first}"
WHOLE = "{first}"  # each example is a sentence for the log
REFUSED = "refused"

# Most readers of the log want to know one thing: which objects are not trained on.
_WITHOUT_AREA = (
    "annotations without area in their image, which training leaves out and the evaluation counts "
    f"as missed: {FIRST}"
)


class Kind(NamedTuple):
    """A kind of finding."""

    key: str  # for programs
    severity: str  # "fault" refuses a run, "note" deserves a look, "info" is how it is read
    title: str  # what was found, in the plural
    training: str  # what training does with it
    why: str
    log: str = ""  # how the log of a run says it, of {count} and {first}; "": not at all

    @property
    def refuses(self) -> bool:
        """Whether a run is refused."""
        return self.severity == "fault"


def _fault(key: str, title: str, why: str) -> Kind:
    return Kind(key, "fault", title, REFUSED, why)


# -- annotation files ------------------------------------------------------------------------------

BROKEN_FILE = _fault("broken_file", "annotation files that cannot be read", "nothing can be read")
NOT_THE_LAYOUT = _fault("not_the_layout", "files of another layout", "detectron2 needs these parts")
BROKEN_RECORD = _fault(
    "broken_record",
    "records without a field, or with a value of another kind",
    "detectron2 or the metric would stop at them, some only after the training",
)
REPEATED_CATEGORY = _fault(
    "repeated_category", "category ids of two classes", "one of both would be lost"
)
UNKNOWN_CATEGORY = _fault(
    "unknown_category", "objects of a class that is not declared", "they would have no class"
)
OTHER_CLASSES = _fault(
    "other_classes", "classes that disagree", "detections are compared by the index of the class"
)
OTHER_NAMES = Kind(
    "other_names",
    "note",
    "data sets that differ in what they stand for",
    "used",
    "as the check before a run says",
)
NO_EVALUATOR = _fault(
    "no_evaluator", "test sets that nobody can score", "the evaluation after the training"
)
REPEATED_IMAGE_ID = _fault(
    "repeated_image_id", "image ids of two files", "objects would lie in the wrong image"
)
REPEATED_IMAGE_RECORD = Kind(
    "repeated_image_record",
    "note",
    "images that are listed again",
    "used once",
    "id and file are the same",
)
REPEATED_ID = _fault(
    "repeated_annotation_id", "annotation ids of two objects", "detectron2 refuses them"
)
NO_IMAGE_SIZE = _fault(
    "impossible_size", "images of a size that none has", "boxes are clipped to the size"
)
ORPHAN = Kind(
    "orphan_annotation",
    "note",
    "annotations of an image that is not in the file",
    "dropped",
    "they belong to no image",
    f"annotations that belong to no image of the file and are left out: {FIRST}",
)
GAPS = Kind(
    "gaps",
    "note",
    "annotations without what COCO's metric needs",
    "used",
    "training needs none of it; for the evaluation it is filled in",
    WHOLE,
)
NOT_ANNOTATED = Kind(
    "not_annotated",
    "note",
    "files without annotations",
    "not trained on",
    "as those of a test server: detections are written, and not scored",
    "it has no 'annotations': detections are written, and not scored",
)
CONVERTED = Kind(
    "converted",
    "note",
    "files in a form of their own",
    "used",
    "brought into the form that detectron2 reads",
    WHOLE,
)
BAD_MASK = _fault("bad_mask", "masks that the model cannot use", "MODEL.MASK_ON needs them")
BAD_KEYPOINTS = _fault(
    "bad_keypoints", "keypoints that the model cannot use", "MODEL.KEYPOINT_ON needs them"
)
NOTHING_TO_SCORE = _fault("nothing_to_score", "test sets without objects", "AP would be nan")
IMAGE_WITHOUT_OBJECTS = Kind(
    "image_without_objects",
    "info",
    "images without objects",
    "left out (used with DATALOADER.FILTER_EMPTY_ANNOTATIONS False)",
    "they show what is no object; an evaluation uses them",
)
CLASS_WITHOUT_OBJECTS = Kind(
    "class_without_objects",
    "note",
    "classes without objects",
    "used",
    "the model never sees them; COCO's metric leaves them out of the mean",
)
CLASS_NOT_SCORED = Kind(
    "class_without_objects_in_voc",
    "note",
    "test sets in which classes have no object",
    "used",
    "VOC's metric takes them into the mean",
    WHOLE,
)
CLASS_OF_ONE_SIDE = Kind(
    "class_of_one_side",
    "note",
    "classes with objects on one side alone",
    "used",
    "what is not trained on is never found, what is not in the test is never scored",
)

# -- boxes -----------------------------------------------------------------------------------------

NOT_FINITE = _fault(
    "box_not_finite", "boxes with nan or infinity", "the loss would be nan, or the box lost"
)
NO_BOX = _fault("no_box", "boxes that are no four coordinates", "nothing can be made of them")
XYXY = _fault(
    "boxes_xyxy",
    "files whose boxes look like XYXY",
    "taken as [x, y, width, height] they train without a word and end at AP 0",
)
NORMALISED = _fault(
    "boxes_normalised",
    "files whose boxes look like shares of the image, 0 to 1",
    "taken as pixels they train without a word and end at AP 0",
)
ZERO_AREA = Kind(
    "box_zero_area",
    "note",
    "boxes of no width or no height",
    "dropped",
    "they hold no pixel; an evaluation counts them as missed",
    _WITHOUT_AREA,
)
OUTSIDE = Kind(
    "box_outside",
    "note",
    "boxes wholly outside of their image",
    "dropped",
    "clipped to the image they hold no pixel; an evaluation counts them as missed",
    _WITHOUT_AREA,
)
INVERTED = Kind(
    "box_inverted",
    "note",
    "boxes of negative width or height",
    "used, mirrored",
    "detectron2 sorts the corners as it resizes; the metric does not, and counts them as missed",
    "annotations of negative width or height, whose corners training sorts and the evaluation "
    f"counts as missed: {FIRST}",
)
CLIPPED = Kind(
    "box_partly_outside",
    "info",
    "boxes partly outside of their image",
    "clipped",
    "to the image; an evaluation compares with the whole box",
)
REPEATED_BOX = Kind(
    "repeated_box",
    "note",
    "boxes of the same class at the same place",
    "used, each",
    "an evaluation counts all but one as missed",
)

# -- images ----------------------------------------------------------------------------------------

MISSING_IMAGE = _fault("missing_image", "images that are not there", "the loader would stop")
UNREADABLE_IMAGE = _fault(
    "unreadable_image",
    "files that are no image, or damaged at their beginning",
    "the loader would stop",
)
DAMAGED_IMAGE = Kind(
    "damaged_image",
    "fault",
    "images whose pixels are damaged",
    "stops at the first of them",
    "only reading all of an image shows it, which the check before a run does not",
)
DAMAGED_PNG = Kind(
    "damaged_png",
    "note",
    "PNG files whose pixels are damaged",
    "used as far as they can be read",
    "detectron2 looks for EXIF first, for which Pillow reads a PNG, and passes over the error",
)
OTHER_SIZE = _fault(
    "other_size", "images of another size than annotated", "boxes would lie elsewhere"
)
TURNED_SIZE = _fault(
    "turned_size",
    "images annotated as they lie in the file, and turned by EXIF",
    "boxes would lie elsewhere",
)
DEEP_IMAGE = _fault(
    "deep_image",
    "images of 32 bits or of floats",
    "values above 255 would become 255; nothing says which value is white",
)
SOME_LOOKED_AT = Kind(
    "some_looked_at",
    "info",
    "images of which some were looked at",
    "used",
    "the check before a run reads no more headers",
    WHOLE,
)
TURNED = Kind(
    "turned",
    "note",
    "images that EXIF turns",
    "read turned",
    "boxes must be those of the turned image",
    "images that their EXIF orientation turns as they are read (boxes must be those of the turned "
    f"image): {FIRST}",
)
GRAY_16 = Kind(
    "gray_16_bits",
    "note",
    "gray images of 16 bits",
    "read as their upper 8 bits",
    "0 is black and 65,535 white; what has 12 bits in 16 is nearly black and wants conversion",
    f"gray images of 16 bits, of which the upper 8 are read: {FIRST}",
)
DARK_16 = Kind(
    "dark_16_bits",
    "note",
    "gray images of 16 bits that hold 12 or fewer",
    "read nearly black",
    "the upper 8 bits are below 16 everywhere; multiply the values by 16 and save them again",
)
COLOUR_16 = Kind(
    "colour_16_bits",
    "note",
    "colour images of 16 bits",
    "read as their upper 8 bits",
    "Pillow reads no more",
    f"images with 16 bits a colour, of which the upper 8 are read: {FIRST}",
)
GRAY = Kind("gray", "info", "gray images", "read as colour", "red, green and blue are equal")
BLACK_AND_WHITE = Kind(
    "black_and_white", "info", "images of one bit", "read as colour", "0 and 255 of each colour"
)
PALETTE = Kind("palette", "info", "images with a palette", "read as colour", "by the palette")
TRANSPARENT = Kind(
    "transparent",
    "info",
    "images with transparency",
    "read as colour",
    "transparency is dropped: what lies under it is seen",
)
CMYK = Kind("cmyk", "info", "images of printing colours (CMYK)", "read as colour", "converted")
SAME_IMAGE = Kind(
    "same_image",
    "note",
    "images with the content of another one of the set",
    "used, each",
    "they weigh more than others; objects of one may be missing in the other",
)
SAME_IN_BOTH = Kind(
    "same_image_in_both",
    "note",
    "images that are in both",
    "used",
    "a score on what was trained on says nothing about other images",
)
