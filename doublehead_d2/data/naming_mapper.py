"""Errors that name the image at which they happened."""

import re
from collections.abc import Callable
from typing import Any

Record = dict[str, Any]


class RecordError(ValueError):
    """A record that could not be mapped.

    What a worker of a loader raises is raised again in the process that trains, of the same type
    and with the worker's traceback as its text.
    """

    @property
    def line(self) -> str:
        """What happened to which record, without a traceback."""
        found = re.search(rf"^{__name__}\.{type(self).__name__}: (.*)", str(self), re.M | re.S)
        return found[1].rstrip() if found else str(self)


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
            RecordError: it failed; names the record's file and the error.
        """
        try:
            return self.mapper(record)
        except Exception as error:
            name = record.get("file_name", record.get("image_id"))
            raise RecordError(f"image '{name}': {type(error).__name__}: {error}") from error
