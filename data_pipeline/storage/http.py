"""Tars on web servers: `http://`, `https://`, and `hf://` for data sets on the Hugging Face Hub. No
other file imports requests or huggingface_hub.

Credentials come from ~/.netrc (or the file that NETRC names), and for hf:// from HF_TOKEN or `hf
auth login`. Proxies come from the environment. A body that breaks off is read on from where it
broke, if the server can do so and the tar is still the same.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter

from data_pipeline.storage.base import (
    CHUNK,
    AccessDenied,
    Entry,
    NoRanges,
    ObjectMissing,
    StorageError,
    Throttled,
    Truncated,
    Unreachable,
    environment_number,
    joined,
)
from data_pipeline.storage.urls import UrlStore
from model.errors import ConfigError

_AT_ONCE = 16  # requests, to see whether the tars are there
_CONNECTIONS = 64
_LONGEST_WAIT = 30.0  # seconds, whatever a server asks for
_BROKEN_BODY = (urllib3.exceptions.HTTPError, OSError)
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class HttpStore(UrlStore):
    """Tars below a url. Threads may share it."""

    def __init__(self, url: str, names: tuple[str, ...]) -> None:
        """Raises StorageError for a url of hf:// that names no repository, ConfigError if what it
        needs is not installed."""
        super().__init__(url, names)
        self._hub = _Hub(url) if url.startswith("hf://") else None
        self._asked, self._whole = False, False  # whether any tar came whole
        self._timeout = environment_number("ADDP_STORAGE_TIMEOUT", "30")
        self.attempts = max(1, int(environment_number("ADDP_HTTP_ATTEMPTS", "8")))
        self._session = requests.Session()
        adapter = HTTPAdapter(pool_maxsize=_CONNECTIONS)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    @property
    def ranged(self) -> bool:
        if not self._asked:
            self._found(self.names[0])
        return not self._whole

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the tars whose names start so. Each is asked for by a request of its own."""
        wanted = [name for name in self.names if name.startswith(prefix)]
        with ThreadPoolExecutor(_AT_ONCE, "tars") as pool:
            yield from pool.map(self._found, wanted)

    def _found(self, name: str) -> Entry:
        """Look whether a tar is there, and whether its server reads by range."""
        with self._get(name, "bytes=0-0") as response:
            self._asked = True
            if response.status_code == 416:  # it has no bytes
                return Entry(name, 0, 0.0)
            if response.status_code == 200:
                self._whole = True
                return Entry(name, _number(response.headers.get("Content-Length")) or 0, 0.0)
            size = self._part(name, response, 0)
            _body(response, 1)  # so that the connection can be used again
            return Entry(name, size, 0.0)

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""
        return joined(self._parts(name, start, length), f"{self.url}/{name}", start, length)

    def _parts(self, name: str, start: int, length: int | None) -> Iterator[bytes]:
        """Yield the bytes of a range, and read on after each break. A break without progress counts
        as a failed attempt."""
        at, end, failures = start, None if length is None else start + length, 0
        while end is None or at < end:
            with self._get(name, f"bytes={at}-{'' if end is None else end - 1}") as response:
                if response.status_code == 416:
                    return  # the start lies behind its end
                size = self._part(name, response, at)
                end, began = size if end is None else min(end, size), at
                try:
                    while at < end and (piece := _body(response, min(CHUNK, end - at))):
                        at += len(piece)
                        yield piece
                except _BROKEN_BODY as error:
                    cause = type(error).__name__
                else:
                    cause = "end of body"
            failures = 0 if at > began else failures + 1
            if failures >= self.attempts:
                raise self._broken(name, at, end, f", {failures} times ({cause})")
            if at < end:
                _pause(failures)

    def pieces(self, name: str) -> Iterator[bytes]:
        with self._get(name, None) as response:
            size, at = _number(response.headers.get("Content-Length")), 0
            try:
                while piece := _body(response, CHUNK):
                    at += len(piece)
                    yield piece
            except _BROKEN_BODY:
                raise self._broken(name, at, size, "") from None
            if size is not None and at != size:
                raise self._broken(name, at, size, "")

    def _broken(self, name: str, at: int, end: int | None, how: str) -> Truncated:
        of = f" of {end}" if end is not None else ""
        return Truncated(f"{self.url}/{name}: the body broke off at byte {at}{of}{how}")

    def _part(self, name: str, response: requests.Response, start: int) -> int:
        """Check that an answer is the part of the tar that was asked for, and return the tar's
        size."""
        if response.status_code == 200:
            raise NoRanges(
                f"{self.url}/{name}: the server answered a request for a part with the whole tar; "
                "run it again: it then streams the tars, unless the server reads by range again"
            )
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != start:
            raise StorageError(
                f"{self.url}/{name}: the server answered with other bytes than were asked for; "
                "copy the tars into a folder"
            )
        headers = response.headers
        tag = headers.get("ETag") or headers.get("Last-Modified") or "-"
        self._seen(name, f"http {found[2]} {tag}")
        return int(found[2])

    def _get(self, name: str, part: str | None) -> requests.Response:
        """Ask for a tar or a part of it: the answer, whose body was not read yet, has the status
        200, 206 or 416. Raises StorageError after all retries."""
        headers = {"Accept-Encoding": "identity", **({"Range": part} if part else {})}
        address, auth = self._hub.request(name) if self._hub else (f"{self.url}/{name}", None)
        for failures in range(1, self.attempts + 1):
            wait = 0.0
            try:
                response = self._session.get(
                    address, headers=headers, auth=auth, stream=True, timeout=self._timeout
                )
            except (requests.ConnectionError, requests.Timeout) as error:
                problem: StorageError = Unreachable(
                    f"{self.url}/{name}: no answer after {self.attempts} tries "
                    f"({type(error).__name__}); check the host, the network and the proxy"
                )
            except (requests.RequestException, ValueError, OSError) as error:
                # Its text may have an address that a redirection has signed.
                raise StorageError(
                    f"{self.url}/{name} cannot be asked for ({type(error).__name__}); check the url"
                ) from None
            else:
                status = response.status_code
                if status in (200, 206, 416):
                    return response
                wait = _number(response.headers.get("Retry-After")) or 0.0
                response.close()
                problem = self._problem(name, status)
                if status < 500 and status != 429:
                    raise problem
            if failures < self.attempts:
                _pause(failures, wait)
        raise problem from None

    def _problem(self, name: str, status: int) -> StorageError:
        what = f"{self.url}/{name}"
        if status in (404, 410):
            return ObjectMissing(f"{what}: there is no such tar ({status}); check the url")
        if status in (401, 403, 407):
            how = "HF_TOKEN" if self._hub else "~/.netrc"
            return AccessDenied(f"{what}: access denied ({status}); check the login in {how}")
        if status in (429, 503):
            return Throttled(
                f"{what}: the server asks to slow down ({status}) after {self.attempts} tries"
            )
        if status >= 500:
            return Unreachable(f"{what}: the server failed ({status}) {self.attempts} times")
        return StorageError(f"{what}: the server answered with status {status}; check the url")


class _Hub:
    """A folder of a repository: hf://datasets/ORGANISATION/NAME[@REVISION]/folder. `spaces/` and no
    such word at all (for models) may stand in the place of `datasets/`."""

    def __init__(self, url: str) -> None:
        try:
            import huggingface_hub
        except ImportError as error:
            raise ConfigError("hf:// needs huggingface_hub: pip install 'addp[hf]'") from error
        self._library = huggingface_hub
        kind, *rest = url.removeprefix("hf://").split("/")
        self._kind = {"datasets": "dataset", "spaces": "space", "models": "model"}.get(kind)
        rest = rest if self._kind else [kind, *rest]
        repository, _, revision = "/".join(rest[:2]).partition("@")
        if len(rest) < 2 or not all(repository.split("/")):
            raise StorageError(
                f"{url} names no repository; write "
                "hf://datasets/ORGANISATION/NAME/shard-{000..012}.tar"
            )
        self._repository, self._revision = repository, unquote(revision) or None
        self._folder = "".join(f"{part}/" for part in rest[2:])

    def request(self, name: str) -> tuple[str, Any]:
        """Return (address of a tar, what adds the token to a request, if there is one)."""
        address = self._library.hf_hub_url(
            self._repository,
            f"{self._folder}{name}",
            repo_type=self._kind,
            revision=self._revision,
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
        token = self._library.get_token()
        return address, _Bearer(token) if token else None


class _Bearer(requests.auth.AuthBase):
    """Adds a token. A redirection to another host leaves it out, as requests does by itself."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _body(response: requests.Response, most: int) -> bytes:
    """Read on in a body, as it was sent."""
    return response.raw.read(most, decode_content=False)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _pause(failures: int, asked: float = 0.0) -> None:
    wait = random.uniform(0, min(5.0, 0.05 * 2**failures))
    time.sleep(min(_LONGEST_WAIT, max(wait, asked)))
