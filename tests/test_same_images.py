"""Images that are there twice."""

from pathlib import Path

import pytest

from doublehead_d2.data import same_images
from doublehead_d2.data.same_images import hash_suspects, same_in_both, same_within


def files(folder: Path, **contents: bytes) -> list[str]:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [str(folder / name) for name in contents]


def test_the_same_content_under_other_names(tmp_path: Path) -> None:
    a, b, c, d, e = files(tmp_path, a=b"one", b=b"two", c=b"one", d=b"other", e=b"one")
    paths = [a, b, c, d, e]
    hashes = hash_suspects(paths)
    assert set(hashes) == {a, b, c, e}  # no other has the size of d
    assert same_within(paths, hashes) == [(c, a), (e, a)]
    assert same_in_both([a, b], [c, d, e], hashes) == [(a, c)]
    assert same_in_both([c, d, e], [a, b], hashes) == [(c, a), (e, a)]
    assert same_in_both([b], [a], hashes) == []


def test_one_file_that_is_used_twice(tmp_path: Path) -> None:
    a, b = files(tmp_path, a=b"one", b=b"three")
    hashes = hash_suspects([a, b, a])
    assert same_within([a, b, a], hashes) == [(a, a)]
    assert same_in_both([a, a], [a], hashes) == [(a, a)]  # told once


def test_only_files_of_one_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = files(tmp_path, a=b"1", b=b"22", c=b"333")
    monkeypatch.setattr(same_images, "_hash", None)
    assert hash_suspects(paths) == {}


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    (a,) = files(tmp_path, a=b"one")
    assert hash_suspects([a, str(tmp_path / "gone"), str(tmp_path / "gone")]) == {}
    assert hash_suspects([]) == {}


def test_large_files_are_hashed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_images, "CHUNK", 2)
    a, b, c = files(tmp_path, a=b"abcdef", b=b"abcdex", c=b"abcdef")
    assert same_within([a, b, c], hash_suspects([a, b, c])) == [(c, a)]
