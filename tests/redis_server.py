"""A real Redis server for tests: its own process, port and directory."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

import pytest


class RedisServer:
    """A server that writes every command to disk, so that `start` continues after `kill`.

    Args:
      directory: its data.
      appendfsync: when it syncs what it wrote; "always" before it replies.
    """

    def __init__(self, directory: Path, appendfsync: str = "always") -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("there is no redis-server here (Debian: apt-get install redis-server)")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.directory = directory
        self._command = [
            program,
            *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(directory)),
            *("--appendonly", "yes", "--appendfsync", appendfsync, "--save", ""),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 20.0
        while not self._answers():
            assert self._process.poll() is None, "redis-server left"
            assert time.monotonic() < until, "redis-server does not answer"
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as client:
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
