"""Servers for the captioner's tests: a real `transformers serve`, and a proxy before it that fails as it is told."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx

START_SEC = 200


def free_port() -> int:
    """A port of this machine that nobody listens at.

    It lies below those that systems give to outgoing connections, so that none takes it while a server is restarted.
    """
    while True:
        port = random.randrange(15000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class ServedModel:
    """`transformers serve MODEL` as a process of its own; use it with `with`."""

    def __init__(self, model: str, folder: Path) -> None:
        self.model, self.folder, self.port = model, folder, free_port()
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Starts the server, and waits until it answers."""
        (self.folder / "hub").mkdir(parents=True, exist_ok=True)  # /v1/models wants a cache folder
        environment = os.environ | {"HF_HOME": str(self.folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [str(Path(sys.executable).parent / "transformers"), "serve", self.model, "--dtype", "float32"]
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SEC
        while not self._is_ready():
            ended = self.process.poll() is not None or time.monotonic() > deadline
            assert not ended, (self.folder / "log.txt").read_text()[-2000:]
            time.sleep(0.1)

    def kill(self) -> None:
        """Ends it with SIGKILL, as a machine that crashes."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def __enter__(self) -> "ServedModel":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None:
            self.kill()


Fault = str | int | None
"""What happens to a request: None passes it on; a number is the status of the answer; "cut" ends the connection in the
middle of the answer; "silence" never answers."""


class FaultProxy:
    """Passes requests on to a server, and fails as a function of the request and of the attempt says.

    Args:
        port: of the server behind it.
        fault: (body of a request, how often it came before) -> what happens to it.
        gather: so many requests are let in before the first is passed on; then there is no more waiting.
    """

    def __init__(self, port: int, fault: Callable[[str, int], Fault], gather: int = 1) -> None:
        self.fault, self.gather = fault, gather
        self.attempts: Counter[str] = Counter()
        self.answered = 0
        self.most_in_flight = 0
        self._behind = port
        self._in_flight = 0
        self._gathered = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result()
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        try:
            request, body = await _read_message(reader)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            if self._in_flight >= self.gather:
                self._gathered.set()
            await self._gathered.wait()
            text = body.decode()
            fault = self.fault(text, self.attempts[text])
            self.attempts[text] += 1
            try:
                await self._answer(fault, request + body, reader, writer)
            finally:
                self._in_flight -= 1
        except (OSError, asyncio.IncompleteReadError):
            pass  # either side went away
        finally:
            writer.close()

    async def _answer(
        self, fault: Fault, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if isinstance(fault, int):
            said = b'{"error": {"message": "told to fail"}}'
            writer.write(b"HTTP/1.1 %d Told\r\ncontent-type: application/json\r\nconnection: close\r\n" % fault)
            writer.write(b"content-length: %d\r\n\r\n%s" % (len(said), said))
            await writer.drain()
        elif fault == "silence":
            await reader.read()  # until the client has had enough
        else:
            behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self._behind)
            try:
                behind_writer.write(request)
                head, body = await _read_message(behind_reader)
            finally:
                behind_writer.close()
            whole = head.replace(b"\r\n", b"\r\nconnection: close\r\n", 1) + body
            writer.write(whole[: len(whole) // 2] if fault == "cut" else whole)
            await writer.drain()
            self.answered += fault is None


async def _read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of an HTTP message whose length is given."""
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return head, await reader.readexactly(int(lengths[0])) if lengths else b""
