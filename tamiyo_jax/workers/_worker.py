"""One worker process: started, asked, killed and reaped; see `WorkerPool`."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.workers._messages import Load, Raised, receive, send

__all__ = ["UnreadableAnswerError", "Worker", "WorkerSpec", "worker_environment"]

# What a worker may see of the environment: enough to find programs, libraries and devices,
# and no secret.
_ALLOWED = (
    *("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "HOME", "USER", "TMPDIR", "LANG", "LC_ALL", "TZ"),
    *("CUDA_VISIBLE_DEVICES", "XLA_FLAGS"),
)

_REAP_S = 0.5  # a process that outlives SIGKILL for so long sits in the kernel
_LEAVE_S = 2.0
_LOG_TAIL = 2_000
_KEPT_LOGS = 8  # of a stage
_MARK = "_TAMIYO_WORKER"  # names a worker to all that it starts
_PROGRAM = str(Path(__file__).with_name("_start.py"))
_GLANCE_S = 0.001  # what it takes to see whether an answer is there


class UnreadableAnswerError(ConnectionError):
    """An answer came, and cannot be unpickled here."""


def worker_environment(device: str, cache: Path) -> dict[str, str]:
    """Environment of a worker: an allow-list, the module path, the device and the cache.

    Args:
      device: JAX platform that the worker computes on.
      cache: directory in which compiled programs are kept.
    """
    kept = {name: os.environ[name] for name in _ALLOWED if name in os.environ}
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return kept | {
        "PYTHONPATH": path,
        "JAX_PLATFORMS": device,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What the workers of a pool are.

    Attributes:
      stage: ``"inference"`` or ``"metadata"``; names the pool in errors.
      load: what each worker loads once.
      failure: the error for a worker that crashed or raised something of its own.
      environment: all that the process sees of the environment.
      logs: directory of the files ``STAGE-PID.log`` with what the processes write; the newest
        eight are kept, each of at most about 1 MiB.
      spares: warm workers that stand by.
      warmup_s: how long a worker may take to start and to warm up.
    """

    stage: str
    load: Load
    failure: type[TamiyoError]
    environment: Mapping[str, str]
    logs: Path
    spares: int
    warmup_s: float


class Worker:
    """One process. Started by a pool's keeper, used by one caller at a time.

    Args:
      spec: what to start.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self.loaded = False  # kept by the pool, like what it was warmed up with
        self.warm: set[Hashable] = set()
        mark = uuid.uuid4().hex
        name = spec.logs / f"{spec.stage}-starting-{mark}.log"
        self._log = name.open("ab+")
        self._log_tail = ""
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", _PROGRAM),
                    *(str(theirs.fileno()), str(os.getpid()), f"{_MARK}={mark}"),
                ],
                env={**spec.environment, _MARK: mark},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                process_group=0,  # a keyboard interrupt is the trainer's, and a kill takes all
            )
        name.rename(spec.logs / f"{spec.stage}-{self._process.pid}.log")
        _remove_old_logs(spec)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._end = select.poll()  # select() cannot wait for a descriptor above 1023
        self._end.register(self._pidfd, select.POLLIN)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while the process lives."""
        return self._process.returncode

    def exchange(
        self,
        message: object,
        deadline: float,
        margin: float = 0.0,
        meanwhile: Callable[[], object] | None = None,
    ) -> object:
        """Ask and wait for the answer, which `open_answer` opens.

        Args:
          message: anything that pickles.
          deadline: on the clock of `time.monotonic`.
          margin: how many seconds before that an answer must have come.
          meanwhile: what to do while the worker is at work. If it takes all the time there is,
            an answer that came is still an answer.

        Raises:
          TimeoutError: no answer in time.
          ConnectionError: the process is gone, or its answer is an `UnreadableAnswerError`.
        """
        limit = deadline - margin
        send(self._connection, message, limit)
        if meanwhile is not None:
            meanwhile()
            limit = max(limit, min(deadline, time.monotonic() + _GLANCE_S))
        try:
            return receive(self._connection, limit)
        except OSError:
            raise
        except Exception as error:  # of whatever kind a class of the user's raises
            raise UnreadableAnswerError(f"{type(error).__name__}: {error}") from error

    def open_answer(self, answer: object) -> Any:  # noqa: ANN401 - a reply
        """Return what an answer of `exchange` holds.

        Raises:
          TamiyoError: the worker raised.
        """
        if not isinstance(answer, Raised):
            return answer
        if answer.error is not None:
            raise answer.error
        raise self._spec.failure(
            f"the {self._spec.stage} worker raised {answer.summary}",
            stage=self._spec.stage,
            trace=answer.trace,
        )

    @property
    def ended(self) -> bool:
        """Whether the process is over, reaped or not."""
        return self._pidfd < 0 or bool(self._end.poll(0))

    def signal(self) -> None:
        """Kill the process and all it started; the owner of the worker reaps it."""
        with suppress(ProcessLookupError, PermissionError):  # the latter where all have ended
            os.killpg(self.pid, signal.SIGKILL)

    def kill(self) -> bool:
        """Kill the process and reap it; False if it has not ended yet."""
        self.signal()
        return self.reap(_REAP_S)

    def leave(self) -> bool:
        """Close the connection and wait for the process to exit; kill it if it does not."""
        self._connection.close()
        return self.reap(_LEAVE_S) or self.kill()

    def reap(self, timeout: float) -> bool:
        """Wait for the end of the process and release what was held for it."""
        if self._process.returncode is None:
            if not self._end.poll(timeout * 1e3):
                return False
            self.signal()  # whatever it started; its number is its own until it is reaped
            self._process.wait()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
            self._connection.close()
            self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - _LOG_TAIL))
            self._log_tail = self._log.read().decode(errors="replace").strip()
            self._log.close()
        return True

    def exit_message(self) -> str:
        """How the process ended, and the end of its output; call it once it is reaped."""
        status = self.status
        how = "is still ending" if status is None else f"ended with status {status}"
        if status is not None and status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        said = self._log_tail
        return f"{how}; the end of its output: {said}" if said else how


def _remove_old_logs(spec: WorkerSpec) -> None:
    """Keep the newest logs of a stage."""
    logs = sorted(spec.logs.glob(f"{spec.stage}-*.log"), key=lambda log: log.stat().st_mtime)
    for log in logs[:-_KEPT_LOGS]:
        log.unlink(missing_ok=True)
