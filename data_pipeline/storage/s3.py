"""A store on S3, or on a server that speaks its protocol. No other file imports boto3.

Credentials, region and endpoint come from boto3's usual chain (environment, profile, instance role;
AWS_ENDPOINT_URL_S3 for other servers) and from nowhere else. botocore retries requests with
back-off and jitter. A body that breaks off is read on from where it broke, if the object is still
the same.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import boto3
import botocore.exceptions as botocore_errors
import botocore.loaders
import botocore.session
import urllib3.exceptions
from botocore.config import Config

from data_pipeline.storage.base import (
    CHUNK,
    AccessDenied,
    BucketMissing,
    Entry,
    ObjectMissing,
    StorageError,
    Throttled,
    Truncated,
    Unreachable,
    environment_number,
    joined,
    parse_s3,
)

T = TypeVar("T")
_FAULTS = (botocore_errors.BotoCoreError, botocore_errors.ClientError, urllib3.exceptions.HTTPError)
_PART = 32 * 2**20  # objects above this size are uploaded in parts
_DENIED = {
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "AllAccessDisabled",
    "AccountProblem",
    "RequestTimeTooSkewed",
    "403",
    "Forbidden",
    "Unauthorized",
    "401",
}
_SLOW = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "503",
    "429",
}
_TAKEN = {"PreconditionFailed", "412"}
_CONFLICT = {"ConditionalRequestConflict", "409"}  # another writer of the same name is at work
_BROKEN_BODY = (
    botocore_errors.IncompleteReadError,
    botocore_errors.ReadTimeoutError,
    botocore_errors.ResponseStreamingError,
    botocore_errors.HTTPClientError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TimeoutError,
)


def _client() -> Any:
    """Return boto3's client, and how often it tries a request. Raises StorageError."""
    timeout = environment_number("ADDP_STORAGE_TIMEOUT", "30")
    attempts = max(1, int(environment_number("AWS_MAX_ATTEMPTS", "8")))
    config = Config(
        connect_timeout=timeout,
        read_timeout=timeout,
        max_pool_connections=64,
        tcp_keepalive=True,
        retries={
            "mode": os.environ.get("AWS_RETRY_MODE", "standard"),
            "total_max_attempts": attempts,
        },
    )
    _check_endpoint()
    try:
        session = botocore.session.get_session()
        loader = _descriptions(session.get_config_variable("data_path"))
        session.register_component("data_loader", loader)
        return boto3.session.Session(botocore_session=session).client("s3", config=config), attempts
    except ValueError as error:
        raise StorageError(
            "the endpoint_url of the AWS profile is no url: it needs http:// or https://"
        ) from error
    except botocore_errors.BotoCoreError as error:
        raise StorageError(
            f"boto3 cannot make an S3 client: {error}; set AWS_DEFAULT_REGION or a profile"
        ) from error


@functools.cache
def _descriptions(path: str | None) -> Any:
    """Return botocore's loader of descriptions of S3 and its endpoints, which keeps what it parsed:
    that takes a tenth of a second. path: further folders to search, as AWS_DATA_PATH names them."""
    return botocore.loaders.create_loader(path)


def _check_endpoint() -> None:
    """Raise StorageError for an endpoint in the environment that boto3 would not understand."""
    if os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if url := os.environ.get(name):
            scheme, separator, host = url.partition("://")
            if not separator or scheme.lower() not in ("http", "https") or not host.strip("/"):
                raise StorageError(
                    f"{name} is no url of a server: it needs http:// or https:// before the host, "
                    f"as {name}=http://localhost:9000"
                )
            return


class S3Store:
    """The objects below `s3://bucket/prefix`. Threads may share it."""

    def __init__(self, url: str) -> None:
        self._bucket, self._prefix = parse_s3(url)
        url = f"s3://{self._bucket}/{self._prefix}"
        shorter = url[:-1]
        self.url = shorter if shorter.count("/") == 2 or not shorter.endswith("/") else url
        self._s3, self._attempts = _client()

    def _key(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + name}

    def _call(self, name: str, function: Callable[[], T]) -> T:
        try:
            return function()
        except _FAULTS as error:  # without its context: botocore's text may carry headers
            raise self._typed(error, name) from None

    def _typed(self, error: Exception, name: str) -> StorageError:
        """Return the named error for what boto3 said about an object."""
        what = f"{self.url}/{name}" if name else self.url
        if isinstance(error, botocore_errors.ClientError):
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
            if code == "NoSuchBucket":
                return BucketMissing(
                    f"{what}: there is no bucket {self._bucket}; make it, or check its name"
                )
            if code in ("NoSuchKey", "NotFound", "404") or status == "404":
                return ObjectMissing(f"{what}: there is no such object")
            if code in _DENIED or status in ("401", "403"):
                return AccessDenied(
                    f"{what}: access denied ({code}); check the credentials that boto3 finds "
                    "(AWS_PROFILE, AWS_ACCESS_KEY_ID, instance role), their expiry, and the "
                    "bucket's policy"
                )
            if code in _SLOW or status in ("429", "503"):
                return Throttled(
                    f"{what}: the server asks to slow down ({code}) after {self._attempts} tries"
                )
            if status.startswith("5"):
                return Unreachable(
                    f"{what}: the server failed ({code or status}) {self._attempts} times"
                )
            return StorageError(f"{what}: {code or status}")
        if isinstance(
            error, botocore_errors.NoCredentialsError | botocore_errors.CredentialRetrievalError
        ):
            return AccessDenied(
                f"{what}: boto3 finds no credentials; set AWS_PROFILE or AWS_ACCESS_KEY_ID and its "
                "secret"
            )
        if isinstance(error, botocore_errors.PartialCredentialsError):
            return AccessDenied(f"{what}: the credentials that boto3 finds lack a part: {error}")
        if isinstance(error, botocore_errors.ParamValidationError):
            return StorageError(f"{what}: not a valid bucket or key name")
        return Unreachable(
            f"{what}: no answer after {self._attempts} tries ({type(error).__name__}); check the "
            "endpoint"
        )

    def folders(self) -> list[str]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
        )
        prefixes = self._call(
            "", lambda: [p["Prefix"] for page in pages for p in page.get("CommonPrefixes", ())]
        )
        return sorted(prefix[len(self._prefix) :].rstrip("/") for prefix in prefixes)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix
        )
        pages = iter(pages)
        while (page := self._call(prefix, lambda: next(pages, None))) is not None:
            for item in page.get("Contents", ()):
                name = item["Key"][len(self._prefix) :]
                if name and not name.endswith("/"):  # a "folder" made by a console
                    yield Entry(name, item["Size"], item["LastModified"].timestamp())

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""
        return joined(self._stream(name, start, length), f"{self.url}/{name}", start, length)

    def _stream(self, name: str, start: int, length: int | None) -> Iterator[bytes]:
        """Yield the bytes of a range, and read on after each break. A break without progress counts
        as a failed attempt."""
        at, end, tag, failures = start, None if length is None else start + length, "", 0
        while end is None or at < end:
            arguments = {**self._key(name), "Range": f"bytes={at}-{'' if end is None else end - 1}"}
            if tag:
                arguments["IfMatch"] = tag  # never two halves of different objects
            try:
                response = self._call(name, lambda a=arguments: self._s3.get_object(**a))  # type: ignore[misc]
            except StorageError as error:
                if "InvalidRange" in str(error) and at == start:
                    return  # an empty object, or a start behind its end
                if "PreconditionFailed" in str(error):
                    raise StorageError(
                        f"{self.url}/{name} was overwritten while it was read; read it again"
                    ) from error
                raise
            tag = response["ETag"]
            size = int(response["ContentRange"].rpartition("/")[2])
            end = size if end is None else min(end, size)
            began = at
            try:
                with contextlib.closing(response["Body"]) as body:
                    while at < end and (piece := body.read(min(CHUNK, end - at))):
                        at += len(piece)
                        yield piece
            except _BROKEN_BODY as error:
                cause = type(error).__name__
            else:
                cause = "end of body"
            failures = 0 if at > began else failures + 1
            if failures >= self._attempts:
                raise Truncated(
                    f"{self.url}/{name}: the body broke off at byte {at} of {end}, {failures} "
                    f"times ({cause})"
                )
            if at < end:
                time.sleep(random.uniform(0, min(5.0, 0.05 * 2**failures)))

    def create(self, name: str, content: bytes | Path) -> bool:
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        for attempt in range(self._attempts):
            try:
                if size <= _PART:
                    body = content.read_bytes() if isinstance(content, Path) else content
                    self._s3.put_object(**self._key(name), Body=body, IfNoneMatch="*")
                else:
                    self._create_in_parts(name, content)
                return True
            except botocore_errors.ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", ""))
                if code in _TAKEN:
                    return False
                if code == "NoSuchUpload" and any(entry.name == name for entry in self.list(name)):
                    return False  # a finished job swept our upload away: the name was taken before
                if code not in _CONFLICT or attempt + 1 == self._attempts:
                    raise self._typed(error, name) from None
            except (botocore_errors.BotoCoreError, urllib3.exceptions.HTTPError) as error:
                raise self._typed(error, name) from None
            time.sleep(random.uniform(0, 0.1 * 2**attempt))
        raise AssertionError("unreachable")

    def _create_in_parts(self, name: str, content: bytes | Path) -> None:
        """Upload in several requests; the last one makes the name appear, under the same condition
        as a single request, or not at all."""
        upload = self._s3.create_multipart_upload(**self._key(name))["UploadId"]
        try:
            parts = []
            for number, part in enumerate(_parts(content), 1):
                done = self._s3.upload_part(
                    **self._key(name), UploadId=upload, PartNumber=number, Body=part
                )
                parts.append({"ETag": done["ETag"], "PartNumber": number})
            self._s3.complete_multipart_upload(
                **self._key(name),
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                IfNoneMatch="*",
            )
        except BaseException:
            with contextlib.suppress(botocore_errors.BotoCoreError, botocore_errors.ClientError):
                self._s3.abort_multipart_upload(**self._key(name), UploadId=upload)
            raise

    def replace(self, name: str, content: bytes) -> None:
        self._call(name, lambda: self._s3.put_object(**self._key(name), Body=content))

    def remove(self, name: str) -> None:
        self._call(name, lambda: self._s3.delete_object(**self._key(name)))

    def sweep(self) -> None:
        """Abort multipart uploads of killed writers below our prefix: they cost money and never
        appear."""
        listing = self._call(
            "", lambda: self._s3.list_multipart_uploads(Bucket=self._bucket, Prefix=self._prefix)
        )
        for upload in listing.get("Uploads", ()):
            with contextlib.suppress(botocore_errors.ClientError):
                self._s3.abort_multipart_upload(
                    Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )


def _parts(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield from (content[i : i + _PART] for i in range(0, len(content), _PART))
        return
    with content.open("rb") as file:
        while part := file.read(_PART):
            yield part
