"""Videos and cameras, frame by frame."""

import mimetypes
import os
import sys
from collections.abc import Iterator

import cv2
import numpy as np

USUAL_FPS = 25.0  # of cameras and files that say none
QUIT_KEYS = (ord("q"), 27)  # 27: Esc


def is_video(path: str) -> bool:
    """Whether a path is that of a video file, by its name."""
    kind = mimetypes.guess_type(path)[0] or ""
    return kind.startswith("video/") and os.path.isfile(path)


def is_camera(path: str) -> bool:
    """Whether a path is the number of a camera, such as "0"."""
    return path.isdigit() and not os.path.exists(path)


def _keep_quiet() -> None:
    """Silence OpenCV and its decoders, before their first use: errors here say what is wrong."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class Video:
    """A video or a camera that is read."""

    def __init__(self, path: str) -> None:
        """
        Args:
            path: of a file, or the number of a camera.

        Raises:
            ValueError: it cannot be opened.
        """
        _keep_quiet()
        self.camera = is_camera(path)
        self._capture = cv2.VideoCapture(int(path) if self.camera else path)
        if not self._capture.isOpened():
            self._capture.release()
            what = f"camera {path}: there is none, or" if self.camera else f"{path}:"
            raise ValueError(f"{what} OpenCV cannot open it")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps < 1000 else USUAL_FPS
        # Files say how many there are, more or less; cameras a negative number or none.
        self.length = max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0) or None

    def frames(self) -> Iterator[np.ndarray]:
        """BGR frames, H x W x 3 uint8; the video is closed after the last."""
        try:
            while True:
                there, frame = self._capture.read()
                if not there:
                    return
                yield frame
        finally:
            self._capture.release()


class VideoFile:
    """A video that is written, frame by frame; what is written before an error stays."""

    def __init__(self, path: str, fps: float) -> None:
        """
        Args:
            path: of an MP4; its folder is there.
            fps: frames a second.
        """
        _keep_quiet()
        self.path = path
        self._fps = fps
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)  # (width, height)

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.release()

    def append(self, picture: np.ndarray) -> None:
        """Write a BGR picture (uint8); those of other sizes than the first are resized.

        Raises:
            OSError: the file cannot be written.
        """
        if self._writer is None:
            # Encoders want even sides.
            self._size = (picture.shape[1] // 2 * 2, picture.shape[0] // 2 * 2)
            four = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(self.path, four, self._fps, self._size)
            if not self._writer.isOpened():
                raise OSError(f"{self.path}: OpenCV cannot write a video there")
        width, height = self._size
        if picture.shape[:2] != (height, width):
            within = picture[:height, :width]  # a row or column less
            fits = (
                within.shape[:2] == (height, width)
                and max(picture.shape[0] - height, picture.shape[1] - width) < 2
            )
            picture = within if fits else cv2.resize(picture, self._size)
        self._writer.write(np.ascontiguousarray(picture))


class Window:
    """Shows pictures where there is a display; elsewhere it does nothing."""

    def __init__(self, title: str) -> None:
        """
        Args:
            title: of the window.
        """
        self._title = title
        # Without a display Qt ends the process.
        self._there = sys.platform in ("win32", "darwin") or bool(
            os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        )

    def show(self, picture: np.ndarray) -> bool:
        """Show a BGR picture (uint8); returns whether to go on: not after q or Esc."""
        if not self._there:
            return True
        try:
            cv2.imshow(self._title, picture)
            return cv2.waitKey(1) & 0xFF not in QUIT_KEYS
        except cv2.error:  # OpenCV without windows, such as opencv-python-headless
            self._there = False
            return True
