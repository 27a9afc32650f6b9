"""Data sets that DATASETS.REGISTER names: a layout a file, and what they share."""
