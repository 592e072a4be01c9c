"""A photo from the web: only where that is allowed, only by https, only from public addresses, and not without end."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import anyio
from anyio.from_thread import start_blocking_portal

from secondlook.agents.errors import ConfigError, ImageError
from secondlook.agents.photo import Photo
from secondlook.prompts import data

if TYPE_CHECKING:
    import httpx2

MOST_BYTES = 32 * 2**20
"""Largest file fetched, in bytes."""
MOST_REDIRECTS = 3
TIMEOUT_S = 30.0
"""For everything together, from the first look-up to the last byte."""
PORT = 443

Resolve = Callable[[str], Sequence[str]]
"""Gives the addresses of a host."""
Transport = Callable[[], "httpx2.AsyncBaseTransport"]

_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def fetch_photo(
    url: str,
    allow: bool = False,
    *,
    most_bytes: int = MOST_BYTES,
    timeout_s: float = TIMEOUT_S,
    resolve: Resolve | None = None,
    transport: Transport | None = None,
) -> Photo:
    """Fetch one image; also from within a running event loop.

    Parameters
    ----------
    url : str
        Begins with ``https://``; names no user and no port but 443.
    allow : bool
        Whether anything may be fetched at all: say so where the URLs come from someone you trust.
    most_bytes : int
        Largest file, in bytes; counted while it arrives.
    timeout_s : float
        For everything together.
    resolve : callable, optional
        Gives the addresses of a host; the system does by default.
    transport : callable, optional
        Makes the httpx2 transport of each request.

    Returns
    -------
    Photo
        Of what was fetched, which is checked as the bytes of any file are: when its pixels are asked for.

    Raises
    ------
    ConfigError
        When it is not allowed.
    ImageError
        When the URL is of another kind, or leads, by itself or by a redirect, to an address that is not public; when
        the server does not answer with a file of that size in that time. Of a URL, messages quote host and path only.

    Notes
    -----
    A host of which any address is not public is refused. The connection is made to the very address that was checked,
    while the certificate is checked for the host, so a second look-up cannot lead elsewhere. Proxies and credentials of
    the environment are not used. At most three redirects are followed, each checked like the first URL.

    Examples
    --------
    >>> fetch_photo("https://example.org/leaf.jpg")
    Traceback (most recent call last):
    secondlook.agents.errors.ConfigError: Images are not fetched from the web unless that is allowed.
    Download it, or say allow=True.
    >>> fetch_photo("https://127.0.0.1/leaf.jpg", allow=True)
    Traceback (most recent call last):
    secondlook.agents.errors.ImageError: https://127.0.0.1/leaf.jpg: 127.0.0.1 is not a public address.
    """
    if not allow:
        raise ConfigError(
            "Images are not fetched from the web unless that is allowed.", "Download it, or say allow=True."
        )
    first = _checked(url)

    async def fetch() -> bytes:
        try:
            with anyio.fail_after(timeout_s):
                return await _fetch(first, most_bytes, timeout_s, resolve or _addresses, transport)
        except TimeoutError as error:
            raise ImageError(f"{_shown(first)}: did not arrive within {timeout_s:g} s.") from error

    with start_blocking_portal() as portal:
        found = portal.call(fetch)
    name = first.raw_path.decode("ascii").partition("?")[0].rpartition("/")[2]
    return Photo.of(found, name=name[-80:] or _host(first))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, and no other, such as this machine's or its network's.

    Examples
    --------
    >>> [is_public(a) for a in ("1.1.1.1", "10.0.0.1", "::1", "::ffff:10.0.0.1", "2606:4700::1111")]
    [True, False, False, False, True]
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        # Addresses that hold another (mapped, 6to4, Teredo) would be sent on to it.
        return ip in _UNICAST and ip.is_global and ip.sixtofour is None and ip.teredo is None
    return ip.is_global and not ip.is_multicast


async def _fetch(
    url: httpx2.URL, most_bytes: int, timeout_s: float, resolve: Resolve, transport: Transport | None
) -> bytes:
    import httpx2

    for _ in range(1 + MOST_REDIRECTS):
        there = url.copy_with(host=await _address(url, resolve))
        headers = {"Host": url.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"}
        # A client of its own for each: none would reuse the connection, or tell the cookies, of another host.
        client = httpx2.AsyncClient(
            transport=transport() if transport else None, trust_env=False, timeout=timeout_s, follow_redirects=False
        )
        try:
            async with (
                client,
                client.stream("GET", there, headers=headers, extensions={"sni_hostname": _host(url)}) as reply,
            ):
                if not reply.has_redirect_location:
                    return await _content(reply, most_bytes, _shown(url))
                onward = str(url.join(reply.headers["location"]))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            what = f"{type(error).__name__}: {data(error, 120)}"
            raise ImageError(f"{_shown(url)}: cannot be fetched; {what}.") from error
        url = _checked(onward)
    raise ImageError(f"{_shown(url)}: was redirected more than {MOST_REDIRECTS} times.")


def _checked(text: str) -> httpx2.URL:
    """Return a URL of the one kind that is fetched."""
    import httpx2

    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise ImageError(f"{str(text)[:80]!r} is no URL.") from error
    if url.scheme != "https" or not url.host:
        raise ImageError(f"{_shown(url)}: is not fetched; only https:// is.")
    if url.userinfo or url.port not in (None, PORT):
        raise ImageError(f"{_shown(url)}: is not fetched; it names a user, or a port other than {PORT}.")
    return url


async def _address(url: httpx2.URL, resolve: Resolve) -> str:
    """Return the address to connect to, of a host all of whose addresses are public."""
    try:
        found = await anyio.to_thread.run_sync(resolve, _host(url), abandon_on_cancel=True)
    except (OSError, UnicodeError) as error:
        raise ImageError(f"{_shown(url)}: there is no such host.") from error
    if not found:
        raise ImageError(f"{_shown(url)}: there is no such host.")
    for address in found:
        if not is_public(address):
            raise ImageError(f"{_shown(url)}: {address} is not a public address.")
    return found[0]


async def _content(reply: httpx2.Response, most_bytes: int, shown: str) -> bytes:
    """Read a file, no further than allowed."""
    if reply.status_code != 200:
        raise ImageError(f"{shown}: the server answered with status {reply.status_code}.")
    if reply.headers.get("content-encoding", "identity").lower() != "identity":
        raise ImageError(f"{shown}: is packed; a small file could become a large one.")
    found = bytearray()
    async for chunk in reply.aiter_raw():
        found += chunk
        if len(found) > most_bytes:
            raise ImageError(f"{shown}: is larger than {most_bytes:,} bytes.")
    return bytes(found)


def _addresses(host: str) -> list[str]:
    return [str(each[4][0]) for each in socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)]


def _shown(url: httpx2.URL) -> str:
    """Host and path; a query may hold a signature, and the user a password."""
    path = url.raw_path.decode("ascii").partition("?")[0]
    return f"{url.scheme}://{_host(url)}{path}"[:200]


def _host(url: httpx2.URL) -> str:
    """Return the host as it is looked up: in ASCII, whatever its script."""
    return url.raw_host.decode("ascii")
