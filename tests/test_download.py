"""Downloads that go on where they stopped and are never used before they are whole."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from doublehead_d2.checkpoint import download as module
from doublehead_d2.checkpoint.download import check_hash, download, file_name, hash_in_name
from servers import Server, hashed

DATA = bytes(range(256)) * 40


def test_hash_in_name() -> None:
    assert hash_in_name("https://x.org/a/dh_20200130-586b67df.pth") == "586b67df"
    assert hash_in_name("model_final_b275ba.pkl") is None
    assert hash_in_name("model-r50.pth") is None
    assert hash_in_name("model-20200130.pth") is None  # a date
    assert hash_in_name("https://x.org/a/dh-586B67DF.pth?download=1") == "586b67df"
    assert file_name("https://x.org/a/dh-586b67df.pth?download=1") == "dh-586b67df.pth"
    assert file_name("/a/b?c.pth") == "b?c.pth"


def test_download(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name = hashed(DATA)
    server.files[name] = DATA
    path = tmp_path / "cache" / name
    for _ in range(2):
        assert download(server.url(name), str(path)) == str(path)
    assert path.read_bytes() == DATA
    assert server.starts == [0]  # the second time nothing is fetched
    assert "100%" in capsys.readouterr().err  # the progress bar


@pytest.mark.parametrize("ranges", [True, False])
def test_download_goes_on_where_it_stopped(ranges: bool, server: Server, tmp_path: Path) -> None:
    name = hashed(DATA)
    server.files[name], server.limit, server.ranges = DATA, 4000, ranges
    path = tmp_path / name
    with pytest.raises(OSError, match=r"closed after 4000 of 10240 .*\(4000 bytes are kept"):
        download(server.url(name), str(path))
    assert not path.exists()  # what is incomplete is never under the file's name
    server.limit = None
    download(server.url(name), str(path))
    assert path.read_bytes() == DATA
    assert server.starts == [0, 4000 if ranges else 0]
    assert not Path(f"{path}.part").exists()


def test_complete_part_needs_no_more_bytes(server: Server, tmp_path: Path) -> None:
    name = hashed(DATA)
    server.files[name] = DATA
    (tmp_path / f"{name}.part").write_bytes(DATA)
    download(server.url(name), str(tmp_path / name))
    assert server.starts == [] and (tmp_path / name).read_bytes() == DATA


@pytest.mark.parametrize("part", [b"", b"x" * 100, b"x" * 20000])
def test_other_content_is_refused_and_removed(part: bytes, server: Server, tmp_path: Path) -> None:
    name = hashed(DATA)
    server.files[name] = DATA if part else DATA[::-1]
    if part:
        (tmp_path / f"{name}.part").write_bytes(part)
    with pytest.raises(ValueError, match=r"SHA-256 \w{64}; its name asks for \w{10}\.\.\. .*rem"):
        download(server.url(name), str(tmp_path / name))
    assert not [x for x in tmp_path.iterdir() if not x.name.endswith(".lock")]


def test_without_a_hash_a_part_is_not_gone_on_with(server: Server, tmp_path: Path) -> None:
    path, part = tmp_path / "model.pth", tmp_path / "model.pth.part"
    server.files["model.pth"], server.limit = DATA, 4000
    with pytest.raises(OSError, match=r"after 4000 of 10240 bytes\. Try again, or get the file"):
        download(server.url("model.pth"), str(path))
    assert not part.exists()
    part.write_bytes(b"of another file")
    server.limit = None
    download(server.url("model.pth"), str(path))
    assert path.read_bytes() == DATA and server.starts == [0, 0] and not part.exists()


def test_download_that_cannot_start_says_what_to_do(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "model-0000000a.pth"
    with pytest.raises(OSError, match=f"HTTP Error 404: .* save it as {path}"):
        download(server.url("nothing"), str(path))
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="cannot download .* Try again, or get the file"):
        download(server.url("nothing"), str(path))


def test_damaged_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / hashed(DATA)
    path.write_bytes(DATA[:-1])
    with pytest.raises(ValueError, match="it is damaged or another file. Remove it"):
        check_hash(str(path))


@pytest.mark.parametrize("answer", ["a page", "another part", "a part without a place"])
def test_an_odd_answer_loses_nothing(answer: str, server: Server, tmp_path: Path) -> None:
    """Such as the login page of a network: what was fetched before stays."""
    name = hashed(DATA)
    server.files[name] = b"<html>log in</html>" if answer == "a page" else DATA
    server.ranges = answer != "a page"
    server.content_range = {"another part": "bytes 7-10239/10240"}.get(answer, "")
    part = tmp_path / f"{name}.part"
    part.write_bytes(DATA[:4000])
    with pytest.raises(OSError, match="does not go on after the 4000 bytes that are here"):
        download(server.url(name), str(tmp_path / name))
    assert part.read_bytes() == DATA[:4000]


def test_length_may_be_unknown(server: Server, tmp_path: Path) -> None:
    name = hashed(DATA)
    server.files[name], server.content_length = DATA, "unknown"
    download(server.url(name), str(tmp_path / name))
    assert (tmp_path / name).read_bytes() == DATA


@pytest.mark.parametrize("length", ["unknown", "10240"])
def test_a_server_that_never_ends_is_left(
    length: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 5000)
    monkeypatch.setattr(module, "BLOCK", 1000)
    name = hashed(DATA)
    server.files[name], server.content_length = DATA, length
    with pytest.raises(ValueError, match="gives .* bytes or more; allowed: 5000. Nothing of"):
        download(server.url(name), str(tmp_path / name))
    assert not [x for x in tmp_path.iterdir() if not x.name.endswith(".lock")]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (100, "fewer than 1024 bytes a second come"),  # 10,240 bytes in 100 s
        (100_000, "it takes more than 86400 seconds"),
    ],
)
def test_a_server_that_dawdles_is_left(
    step: int, message: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(step=step)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    name = hashed(DATA)
    server.files[name] = DATA
    with pytest.raises(OSError, match=rf"cannot download .*{message}\. Try again \(\d+ bytes are"):
        download(server.url(name), str(tmp_path / name))


def test_bytes_are_taken_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte a second: waiting for a whole block would take twelve days."""

    class Dribble:
        headers: ClassVar[dict] = {}
        sent = 0

        def read1(self, size: int) -> bytes:
            self.sent += 1
            return b"x"

    response, seconds = Dribble(), itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with open(tmp_path / "a", "wb") as f, pytest.raises(OSError, match="fewer than 1024 bytes"):
        module._copy(response, f, 0, "a")
    assert response.sent == module.WINDOW + 1
