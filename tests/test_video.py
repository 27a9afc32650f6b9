"""Videos and cameras: read and written frame by frame, with and without a display."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from doublehead_d2.inference import video as module
from doublehead_d2.inference.video import Video, VideoFile, Window, is_camera, is_video


def gray(value: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = str(tmp_path / "clip.mp4")
    with VideoFile(path, 5) as written:
        for value in (40, 120, 200):
            written.append(gray(value))
    assert is_video(path)
    video = Video(path)
    assert video.fps == 5 and video.length == 3 and not video.camera
    frames = list(video.frames())
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    assert [round(float(frame.mean()) / 40) for frame in frames] == [1, 3, 5]
    assert not video._capture.isOpened()


def test_odd_sides_lose_a_pixel_and_other_sizes_are_resized(tmp_path: Path) -> None:
    path = str(tmp_path / "clip.mp4")
    with VideoFile(path, 25) as written:
        for shape in ((49, 65), (49, 65), (96, 128)):
            written.append(gray(99, *shape))
    assert [frame.shape for frame in Video(path).frames()] == [(48, 64, 3)] * 3


def test_what_is_written_before_an_error_stays(tmp_path: Path) -> None:
    path = str(tmp_path / "clip.mp4")
    with pytest.raises(KeyboardInterrupt), VideoFile(path, 25) as written:
        written.append(gray(99))
        raise KeyboardInterrupt
    assert len(list(Video(path).frames())) == 1
    with VideoFile(str(tmp_path / "none.mp4"), 25):
        pass
    assert not (tmp_path / "none.mp4").exists()


def test_what_cannot_be_opened_or_written_is_said_in_a_line(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    with pytest.raises(ValueError, match=r"broken\.mp4: OpenCV cannot open it"):
        Video(str(broken))
    written = VideoFile(str(tmp_path / "absent" / "a.mp4"), 25)
    with pytest.raises(OSError, match=r"a\.mp4: OpenCV cannot write a video there"):
        written.append(gray(99))
    assert capfd.readouterr() == ("", "")


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.MOV", "c.jpg", "7"):
        Path(name).touch()
    assert [is_video(x) for x in ("a.mp4", "b.MOV", "c.jpg", "d.mp4")] == [True, True, False, False]
    assert [is_camera(x) for x in ("0", "12", "7", "a.mp4")] == [True, True, False, False]


opened: list = []  # by number or path


class FakeCapture:
    """A camera of three frames that says nothing of itself."""

    def __init__(self, source: object) -> None:
        opened.append(source)
        self.left = 3

    def isOpened(self) -> bool:
        return self.left >= 0

    def get(self, what: int) -> float:
        return {cv2.CAP_PROP_FPS: 0.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}[what]

    def read(self) -> tuple:
        self.left -= 1
        return self.left >= 0, gray(99)

    def release(self) -> None:
        self.left = -1


def test_a_camera_is_opened_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    camera = Video("0")
    assert opened == [0] and camera.camera
    assert camera.fps == module.USUAL_FPS and camera.length is None
    assert len(list(camera.frames())) == 3
    monkeypatch.setattr(FakeCapture, "isOpened", lambda self: False)
    with pytest.raises(ValueError, match="camera 0: there is none, or OpenCV cannot open it"):
        Video("0")


def test_a_window_needs_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list = []
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(cv2, "imshow", lambda title, picture: shown.append(title))
    monkeypatch.setattr(cv2, "waitKey", lambda wait: ord("q") if len(shown) == 2 else -1)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert Window("a").show(gray(9)) and not shown
    monkeypatch.setenv("DISPLAY", ":0")
    window = Window("a")
    assert window.show(gray(9)) and not window.show(gray(9))  # q
    assert shown == ["a", "a"]

    def fail(*args: object) -> None:
        raise cv2.error("not implemented")

    monkeypatch.setattr(cv2, "imshow", fail)
    assert Window("a").show(gray(9))
