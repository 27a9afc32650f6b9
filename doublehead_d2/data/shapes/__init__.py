"""The built-in shapes data: images drawn from a seed, easy and hard, in COCO's and VOC's layout."""
