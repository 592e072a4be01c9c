"""Photos from the web: refused unless allowed, then only by https from public addresses, limited in size and time."""

from __future__ import annotations

import asyncio
import http.server
import io
import shutil
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import numpy as np
import pytest
from PIL import Image

from secondlook.agents.errors import ConfigError, ImageError
from secondlook.agents.photo import Photo
from secondlook.agents.remote_photo import fetch_photo, is_public

PUBLIC = "203.0.114.7"
"""An address of the open internet; in these tests nothing is sent to it."""
HOST = "photos.example"


def picture() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((16, 24, 3), 120, np.uint8)).save(out, "PNG")
    return out.getvalue()


def unreachable(host: str) -> Sequence[str]:
    raise AssertionError(f"{host} was looked up")


# -- what is refused before anything is sent


def test_nothing_is_fetched_unless_that_is_allowed() -> None:
    with pytest.raises(ConfigError, match="unless that is allowed") as refused:
        fetch_photo(f"https://{HOST}/leaf.png", resolve=unreachable)
    assert "allow=True" in refused.value.remedy
    with pytest.raises(ConfigError, match="images are not fetched"):
        Photo.of(f"https://{HOST}/leaf.png")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://photos.example/leaf.png", "only https:// is"),
        ("ftp://photos.example/leaf.png", "only https:// is"),
        ("file:///etc/passwd", "only https:// is"),
        ("data:image/png;base64,AAAA", "only https:// is"),
        ("//photos.example/leaf.png", "only https:// is"),
        ("leaf.png", "only https:// is"),
        ("", "only https:// is"),
        ("https://", "only https:// is"),
        ("https:///leaf.png", "only https:// is"),
        ("https://user:hunter2@photos.example/leaf.png", "names a user"),
        ("https://photos.example:8443/leaf.png", "a port other than 443"),
        ("https://photos.example:99999/", "a port other than 443"),
        ("https://photos.example:x/", "is no URL"),
        ("https://photos.example/a\nb", "is no URL"),
        ("https://[::1/", "is no URL"),
        (f"https://photos.example/{'x' * 70_000}", "is no URL"),
    ],
)
def test_a_url_of_another_kind_is_refused(url: str, says: str) -> None:
    with pytest.raises(ImageError, match=says) as refused:
        fetch_photo(url, allow=True, resolve=unreachable)
    assert "hunter2" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_this_machine_is_not_public(host: str) -> None:
    with pytest.raises(ImageError, match="is not a public address"):
        fetch_photo(f"https://{host}/leaf.png", allow=True)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.9.9.9", "169.254.169.254", "172.16.0.1", "192.0.2.1",
        "192.168.1.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::8.8.8.8", "64:ff9b::a00:1", "64:ff9b:1::1", "100::1",
        "2001::1", "2001:db8::1", "2002:a00:1::1", "2002:808:808::1", "fc00::1", "fd12::1", "fe80::1", "fe80::1%eth0",
        "fec0::1", "ff02::1", "ff0e::1",
        "", "photos.example", "1.2.3", "2130706433",
    ],
)  # fmt: skip
def test_an_address_that_is_not_of_the_open_internet_is_not_public(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(ImageError, match="is not a public address"):
        fetch_photo(f"https://{HOST}/leaf.png", allow=True, resolve=lambda host: [PUBLIC, address])


@pytest.mark.parametrize("address", ["1.1.1.1", PUBLIC, "2606:4700::1111", "2a00:1450::1", "64:ff9b::101:101"])
def test_an_address_of_the_open_internet_is_public(address: str) -> None:
    assert is_public(address)


def test_a_host_that_has_no_address_is_named() -> None:
    def nowhere(host: str) -> Sequence[str]:
        raise OSError(f"no {host}")

    for resolve in (nowhere, lambda host: []):
        with pytest.raises(ImageError, match=rf"https://{HOST}/leaf.png: there is no such host"):
            fetch_photo(f"https://{HOST}/leaf.png?key=hunter2", allow=True, resolve=resolve)


def test_a_look_up_without_end_is_ended() -> None:
    over = threading.Event()

    def later(host: str) -> Sequence[str]:
        over.wait(30)
        return [PUBLIC]

    started = time.monotonic()
    with pytest.raises(ImageError, match=r"did not arrive within 0\.1 s"):
        fetch_photo(f"https://{HOST}/x", allow=True, timeout_s=0.1, resolve=later)
    assert time.monotonic() - started < 10
    over.set()


# -- a server with a certificate, on this machine, that stands for the internet


class Pages(http.server.BaseHTTPRequestHandler):
    """One answer for each path."""

    seen: ClassVar[list[dict[str, str]]] = []
    redirects: ClassVar[dict[str, str]] = {
        "/near": "/leaf.png",
        "/onward": f"https://{HOST}/near",
        "/round": "/round",
        "/down": f"http://{HOST}/leaf.png",
        "/inside": "https://internal.example/leaf.png",
        "/literal": "https://127.0.0.1/leaf.png",
        "/file": "file:///etc/passwd",
        "/broken": "https://[::1/",
    }

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.seen.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
        if path in self.redirects:
            self.answer(302, b"elsewhere", Location=self.redirects[path], **{"Set-Cookie": "a=hunter2"})
        elif path == "/page":
            self.answer(200, b"<html>no picture</html>")
        elif path == "/packed":
            self.answer(200, b"\x1f\x8b", **{"Content-Encoding": "gzip"})
        elif path == "/status":
            self.answer(404, b"nothing here")
        elif path == "/drip":
            self.answer(200, b"", **{"Content-Length": "1000"})
            self.slowly(b".", 300, 0.02)
        elif path == "/large":
            self.answer(200, b"", Connection="close")
            self.slowly(bytes(10_000), 1000, 0.0)
        else:
            self.answer(200, picture(), **{"Content-Type": "text/plain"})

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if body:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def slowly(self, part: bytes, times: int, pause_s: float) -> None:
        try:
            for _ in range(times):
                self.wfile.write(part)
                time.sleep(pause_s)
        except OSError:
            self.seen.append({"path": "hung up"})

    def log_message(self, *_: Any) -> None:
        pass


class Quiet(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for one host, signed by itself, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not there")
    folder = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-days", "2", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}",
               "-keyout", "key.pem", "-out", "cert.pem"]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def port(certificate: Path) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    with Quiet(("127.0.0.1", 0), Pages) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


class Web:
    """Fetches from the server of the tests as if it stood at `PUBLIC`, and notes where each request was to go."""

    def __init__(self, port: int, certificate: Path) -> None:
        self.trusted = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
        self.port = port
        self.looked_up: list[str] = []
        self.connected: list[str] = []

    def resolve(self, host: str) -> Sequence[str]:
        self.looked_up.append(host)
        return ["127.0.0.1"] if host in ("internal.example", "127.0.0.1") else [PUBLIC]

    def transport(self) -> httpx2.AsyncBaseTransport:
        return _Here(self)

    def fetch(self, path: str, **more: Any) -> Photo:
        url = path if "://" in path else f"https://{HOST}{path}"
        return fetch_photo(url, allow=True, resolve=self.resolve, transport=self.transport, **more)


class _Here(httpx2.AsyncHTTPTransport):
    """The real transport, but for the address, which is this machine's."""

    def __init__(self, web: Web) -> None:
        super().__init__(verify=web.trusted, trust_env=False)
        self._web = web

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self._web.connected.append(f"{request.url.host}:{request.url.port or 443}")
        request.url = request.url.copy_with(host="127.0.0.1", port=self._web.port)
        return await super().handle_async_request(request)


@pytest.fixture
def web(port: int, certificate: Path) -> Web:
    Pages.seen.clear()
    return Web(port, certificate)


def test_a_photo_is_fetched_from_the_address_that_was_checked(web: Web) -> None:
    photo = web.fetch("/deep/leaf.png?key=hunter2")
    assert photo.pixels().size == (24, 16)
    assert photo.name == "leaf.png"
    assert (web.looked_up, web.connected) == ([HOST], [f"{PUBLIC}:443"])
    (asked,) = Pages.seen
    assert (asked["path"], asked["host"], asked["accept-encoding"]) == ("/deep/leaf.png?key=hunter2", HOST, "identity")


def test_the_certificate_must_be_the_hosts(web: Web) -> None:
    with pytest.raises(ImageError, match=r"another\.example/leaf\.png: cannot be fetched; ConnectError"):
        web.fetch("https://another.example/leaf.png")
    web.trusted = ssl.create_default_context()
    with pytest.raises(ImageError, match=r"CERTIFICATE_VERIFY_FAILED"):
        web.fetch("/leaf.png")
    assert not Pages.seen


def test_redirects_are_followed_and_each_is_looked_up_again(web: Web) -> None:
    assert web.fetch("/onward").digest == Photo.of(picture()).digest
    assert (web.looked_up, web.connected) == ([HOST] * 3, [f"{PUBLIC}:443"] * 3)
    assert not any("cookie" in asked for asked in Pages.seen)


@pytest.mark.parametrize(
    ("path", "says", "sent"),
    [
        ("/round", "was redirected more than 3 times", 4),
        ("/down", "only https:// is", 1),
        ("/file", "only https:// is", 1),
        ("/inside", r"internal\.example/leaf\.png: 127\.0\.0\.1 is not a public address", 1),
        ("/literal", r"127\.0\.0\.1 is not a public address", 1),
        ("/broken", "cannot be fetched", 1),
        ("/status", "answered with status 404", 1),
        ("/packed", "is packed", 1),
    ],
)
def test_what_a_server_answers_is_not_trusted(web: Web, path: str, says: str, sent: int) -> None:
    with pytest.raises(ImageError, match=says) as refused:
        web.fetch(f"{path}?key=hunter2")
    assert "hunter2" not in str(refused.value)
    assert len(web.connected) == sent


def test_a_host_that_moves_inside_between_two_looks_is_refused(web: Web) -> None:
    turns = iter(([PUBLIC], ["10.0.0.1"]))
    with pytest.raises(ImageError, match=r"10\.0\.0\.1 is not a public address"):
        fetch_photo(f"https://{HOST}/near", allow=True, resolve=lambda host: next(turns), transport=web.transport)
    assert web.connected == [f"{PUBLIC}:443"]


def test_a_file_is_read_no_further_than_allowed(web: Web) -> None:
    with pytest.raises(ImageError, match="is larger than 50 bytes"):
        web.fetch("/leaf.png", most_bytes=50)
    assert web.fetch("/leaf.png", most_bytes=len(picture())).pixels()


def test_a_file_of_unknown_length_is_not_read_to_its_end(web: Web) -> None:
    with pytest.raises(ImageError, match="is larger than 50 bytes"):
        web.fetch("/large", most_bytes=50)
    for _ in range(100):
        if {"path": "hung up"} in Pages.seen:
            return
        time.sleep(0.02)
    pytest.fail("all of the 10 MB were taken")


def test_a_file_that_drips_is_given_up(web: Web) -> None:
    started = time.monotonic()
    with pytest.raises(ImageError, match=rf"https://{HOST}/drip: did not arrive within 0\.3 s"):
        web.fetch("/drip", timeout_s=0.3)
    assert time.monotonic() - started < 4, "the server alone would have taken 6 s"


def test_what_is_no_picture_is_refused_as_in_any_file(web: Web) -> None:
    photo = web.fetch("/page")
    with pytest.raises(ImageError, match="page: is not an image that can be read"):
        photo.pixels()


def test_a_photo_is_fetched_from_within_an_event_loop_too(web: Web) -> None:
    async def within() -> Photo:
        return web.fetch("/leaf.png")

    assert asyncio.run(within()).pixels()
