"""The built-in shapes data: images drawn from a seed, in COCO's and VOC's layout."""
