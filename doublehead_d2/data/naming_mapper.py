"""Errors that name the image at which they happened."""

from collections.abc import Callable
from typing import Any

Record = dict[str, Any]


class NamingMapper:
    """A mapper for detectron2's loaders that says which record another mapper failed at."""

    def __init__(self, mapper: Callable[[Record], Record | None]) -> None:
        """
        Args:
            mapper: what is called, e.g. a `DatasetMapper`.
        """
        self.mapper = mapper

    def __call__(self, record: Record) -> Record | None:
        """As the mapper.

        Raises:
            ValueError: it failed; names the record's file and the error.
        """
        try:
            return self.mapper(record)
        except Exception as error:
            name = record.get("file_name", record.get("image_id"))
            raise ValueError(f"image '{name}': {type(error).__name__}: {error}") from error
