"""A web server that breaks off, and files that are named by their hash."""

import hashlib
import http.server
import re


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; breaks off after `limit` bytes of an answer; notes where answers began."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.limit: int | None = None
        self.ranges = True
        self.content_range: str | None = None  # instead of the right one
        self.content_length: str | None = None  # instead of the right one
        self.starts: list[int] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        data = self.server.files.get(self.path[1:])
        if data is None:
            return self.send_error(404)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked and self.server.ranges else 0
        if start >= len(data):
            return self.send_error(416)
        self.server.starts.append(start)
        self.send_response(206 if start else 200)
        if start:
            right = f"bytes {start}-{len(data) - 1}/{len(data)}"
            changed = self.server.content_range
            self.send_header("Content-Range", right if changed is None else changed)
        self.send_header("Content-Length", self.server.content_length or str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: self.server.limit])

    def log_message(self, *args: object) -> None:
        pass


def hashed(data: bytes, stem: str = "model") -> str:
    return f"{stem}-{hashlib.sha256(data).hexdigest()[:10]}.pth"
