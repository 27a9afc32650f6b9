"""Downloads that can be interrupted: what was fetched is kept, what is incomplete is never used."""

import contextlib
import os
import re
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from typing import BinaryIO
from urllib.parse import urlsplit

from iopath.common.file_io import file_lock
from tqdm import tqdm

from doublehead_d2.checkpoint.reading import BLOCK, sha256_of

TIMEOUT = 30  # seconds without a byte
# What a server may take from us: the published models are 0.2 GB.
MAX_BYTES = 8 << 30
MAX_SECONDS = 24 * 3600
WINDOW = 60  # seconds, in each of which as many times the slowest rate must come
SLOWEST = 1 << 10  # bytes a second
_HEADERS = {"User-Agent": "doublehead_d2"}


def hash_in_name(address: str) -> str | None:
    """The first digits of a file's SHA-256 in its name, as in "model_20200130-586b67df.pth".

    Eight decimal digits are not taken for a hash: they will be a date.
    """
    found = re.search(r"-([0-9a-f]{8,64})\.pth$", file_name(address), re.IGNORECASE)
    return found[1].lower() if found and not re.fullmatch(r"\d{8}", found[1]) else None


def file_name(address: str) -> str:
    """The name of the file that a path or URL gives, without a query."""
    path = urlsplit(address).path if "://" in address else address
    return path.rsplit("/", 1)[-1]


class TooLargeError(Exception):
    """More bytes come than any checkpoint has."""


def download(url: str, path: str) -> str:
    """Fetch a file; where its name carries its hash, go on where an earlier attempt stopped.

    Until it is whole and its hash agrees, the file is `path` + ".part". Of several processes one
    downloads and the others wait. Without a hash nothing tells whether two parts are of one file.

    Args:
        url: http or https address.
        path: where the file goes; if its name ends in "-<hash>.pth", the hash is checked.

    Returns:
        `path`.

    Raises:
        ValueError: the file that came has another hash, or is larger than `MAX_BYTES`.
        OSError: the server could not be reached, broke off, or takes longer than `SLOWEST` and
            `MAX_SECONDS` allow; says what to do.
    """
    digits = hash_in_name(path)
    path = os.path.abspath(path)
    with file_lock(path):
        if os.path.isfile(path):
            check_hash(path)
            return path
        part = f"{path}.part"
        if digits is None:
            _remove(part)
        try:
            _fetch(url, part)
        except TooLargeError as error:
            _remove(part)
            raise ValueError(f"{url} {error}. Nothing of it was kept") from None
        except (OSError, HTTPException) as error:
            if digits is None:
                _remove(part)
            raise OSError(
                f"cannot download {url}: {error}. Try again{_bytes_kept(part)}, or get the file by "
                f"other means and save it as {path}"
            ) from error
        if digits and not (found := sha256_of(part)).startswith(digits):
            _remove(part)
            raise ValueError(
                f"{url} gave a file with SHA-256 {found}; its name asks for {digits}... "
                "The file was removed"
            )
        os.replace(part, path)
    return path


def check_hash(path: str) -> None:
    """Refuse a file that is not the one its name says.

    Raises:
        ValueError: the file's SHA-256 does not begin with the digits in its name.
    """
    digits, found = hash_in_name(path), sha256_of(path)
    if digits is not None and not found.startswith(digits):
        raise ValueError(
            f"'{path}' has SHA-256 {found}; its name asks for {digits}...: it is damaged or "
            "another file. Remove it, and it is downloaded again"
        )


def _fetch(url: str, part: str) -> None:
    """Complete the file `part`."""
    start = os.path.getsize(part) if os.path.isfile(part) else 0
    ranges = {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(url, headers=_HEADERS | ranges)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to fetch: the hash tells whether it is the file
            return
        raise
    with response:
        if response.status != 206 or _first_byte(response) != start:
            _refuse_less(response, start)  # the server sends all of it again
            start = 0
        with open(part, "ab" if start else "wb") as f:
            _copy(response, f, start, os.path.basename(part).removesuffix(".part"))


def _first_byte(response: HTTPResponse) -> int | None:
    """Where a part of a file begins, as the server says."""
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
    return int(found[1]) if found else None


def _refuse_less(response: HTTPResponse, start: int) -> None:
    """Keep what is there from an answer that is smaller, such as the page of a login."""
    length = response.headers.get("Content-Length") or ""
    if start and (response.status == 206 or not length.isdigit() or int(length) < start):
        raise OSError(
            f"the server does not go on after the {start} bytes that are here, but sends "
            f"{length or 'an unknown number of'} bytes of type "
            f"{response.headers.get('Content-Type')}; remove the .part file to begin anew"
        )


def _copy(response: HTTPResponse, f: BinaryIO, start: int, name: str) -> None:
    left = response.headers.get("Content-Length") or ""
    total = start + int(left) if left.isdigit() else None
    _limit_size(total or 0)
    begin = window = time.monotonic()
    before = f.tell()
    with tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name) as bar:
        # read1 gives what has come; read would wait for a whole block, however slowly it comes.
        for block in iter(lambda: response.read1(BLOCK), b""):
            f.write(block)
            bar.update(len(block))
            _limit_size(f.tell())
            now = time.monotonic()
            if now - begin > MAX_SECONDS:
                raise OSError(f"it takes more than {MAX_SECONDS} seconds")
            if now - window > WINDOW:
                if f.tell() - before < SLOWEST * WINDOW:
                    raise OSError(f"fewer than {SLOWEST} bytes a second come")
                window, before = now, f.tell()
    if total is not None and f.tell() < total:
        raise OSError(f"the connection closed after {f.tell()} of {total} bytes")


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def _limit_size(size: int) -> None:
    if size > MAX_BYTES:
        raise TooLargeError(f"gives {size} bytes or more; allowed: {MAX_BYTES}")


def _bytes_kept(part: str) -> str:
    size = os.path.getsize(part) if os.path.isfile(part) else 0
    return f" ({size} bytes are kept and need not come again)" if size else ""
