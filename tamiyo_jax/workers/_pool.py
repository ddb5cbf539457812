"""A pool of worker processes, for work that can be ended.

A thread of Python cannot be stopped, and neither can a running XLA computation; a process
can. A `WorkerPool` keeps one worker and its warm spares. A call that is not answered in
time ends its worker, and the spare serves the next call.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, NoReturn

from tamiyo_jax.contracts import Metric
from tamiyo_jax.errors import (
    ConfigurationError,
    DeadlineExceededError,
    TamiyoError,
    WorkerUnavailableError,
)
from tamiyo_jax.workers._messages import Encoded, encode
from tamiyo_jax.workers._worker import UnreadableAnswerError, Worker, WorkerSpec

__all__ = ["WorkerPool"]

_FIRST_BACKOFF_S = 0.1
_LAST_BACKOFF_S = 30.0
_CRASH_S = 0.05  # between a connection that broke and the exit status that says why
_FIRST_MARGIN_S = 0.012  # what killing and reaping a JAX process of 250 MB takes
_MARGIN_SHARE = 0.4  # of a budget, at most, is set aside for the kill
_MARGIN_DECAY = 0.8
_AFTERMATH_S = 0.002  # recording the failure


class WorkerPool:
    """A worker and its spares; calls are served one after another.

    Args:
      spec: what the workers are.

    Raises:
      ConfigurationError: this operating system has no parent-death signal.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        if sys.platform != "linux":
            raise ConfigurationError(
                "isolation='process' needs Linux, where a worker dies with its parent; "
                "use isolation='inline' here"
            )
        self._spec = spec
        self._calls = threading.Lock()
        self._changed = threading.Condition()
        self._active: Worker | None = None
        self._ready: deque[Worker] = deque()
        self._coming: Worker | None = None  # starting, or warming up
        self._ending: list[Worker] = []  # killed, not reaped yet
        # Encoded once, and not by the keeper: parameters of a policy pass the allocator of
        # every thread that encodes them, which keeps that memory for itself.
        self._load = encode(spec.load)
        self._warmups: dict[Hashable, Encoded] = {}
        self._started = 0
        self._problem: Exception | None = None
        self._closing = False
        self._margin_s = _FIRST_MARGIN_S
        # One thread starts all workers and lives as long as the pool: the kernel's
        # parent-death signal follows the thread that forked.
        self._keeper = threading.Thread(target=self._keep, name=f"{spec.stage}-workers")
        self._keeper.daemon = True
        self._keeper.start()

    @property
    def restarts(self) -> int:
        """Workers started beyond the first ones."""
        return max(0, self._started - 1 - self._spec.spares)

    @property
    def spares_ready(self) -> int:
        """Warm workers that stand by."""
        return len(self._ready)

    def metrics(self, prefix: str) -> tuple[Metric, ...]:
        """Figures for telemetry, under names that begin with `prefix`."""
        return (
            Metric(f"{prefix}.restarts", float(self.restarts)),
            Metric(f"{prefix}.spares_ready", float(self.spares_ready)),
        )

    def pids(self) -> list[int]:
        """Processes that are warm: the active worker and the spares."""
        with self._changed:
            active = [] if self._active is None else [self._active]
            return [worker.pid for worker in (*active, *self._ready)]

    def wait_ready(self) -> None:
        """Wait for a warm worker.

        Raises:
          WorkerUnavailableError: none could be started; the message says why.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._active or self._ready or self._problem, self._spec.warmup_s
            )
            if not (self._active or self._ready):
                self._raise_unavailable()

    def prepare(self, key: Hashable, message: object) -> Any:  # noqa: ANN401 - a reply
        """Let the worker answer a message within `warmup_s` instead of the call's deadline.

        Every later worker answers it too before it counts as warm.

        Raises:
          DeadlineExceededError, TamiyoError: as `call` does.
        """
        encoded = encode(message)
        answer, worker = self._call(encoded, self._spec.warmup_s * 1e3, "warmup_s")
        with self._changed:
            worker.warm.add(key)
            self._warmups[key] = encoded
            self._changed.notify_all()
        return answer

    def call(
        self, message: object, budget_ms: float, meanwhile: Callable[[], object] | None = None
    ) -> Any:  # noqa: ANN401 - a reply
        """Ask a worker.

        Args:
          message: what its function is called with.
          budget_ms: milliseconds from now until this returns or raises.
          meanwhile: what to do while the worker is at work; if it raises, the worker is ended.

        Raises:
          DeadlineExceededError: there was no answer in time; the worker is gone.
          WorkerUnavailableError: no worker is warm; nothing was tried.
          TamiyoError: the worker raised it; or, of the kind that the pool's `WorkerSpec`
            names, the worker crashed or raised something else.
        """
        return self._call(message, budget_ms, f"{self._spec.stage}_ms", meanwhile)[0]

    def close(self) -> None:
        """End all workers; closing twice is harmless."""
        with self._changed:
            self._closing = True
            if self._coming is not None:
                self._coming.signal()  # the keeper, which waits for it, reaps it
            self._changed.notify_all()
        self._keeper.join()
        with self._calls, self._changed:
            for worker in (self._active, *self._ready, *self._ending):
                if worker is not None:
                    worker.leave()
            self._active = None
            self._ready.clear()
            self._ending.clear()

    def _call(
        self,
        message: object,
        budget_ms: float,
        setting: str,
        meanwhile: Callable[[], object] | None = None,
    ) -> tuple[Any, Worker]:
        deadline = time.monotonic() + budget_ms / 1e3
        if not self._calls.acquire(timeout=max(0.0, budget_ms / 1e3)):
            self._raise_late(budget_ms, "it never left the queue", setting)
        try:
            margin = min(self._margin_s, _MARGIN_SHARE * budget_ms / 1e3)
            if time.monotonic() >= deadline - margin:
                self._raise_late(budget_ms, "it never left the queue", setting)
            worker = self._take()
            try:
                answer = worker.exchange(message, deadline, margin, meanwhile)
            except TimeoutError:
                self._end(worker)
                self._raise_late(budget_ms, "its worker was ended", setting)
            except UnreadableAnswerError as error:
                self._end(worker)
                raise self._make_unreadable(error) from error
            except ConnectionError as error:
                worker.reap(min(_CRASH_S, max(0.0, deadline - time.monotonic())))
                self._end(worker)
                raise self._spec.failure(
                    f"the {self._spec.stage} worker {worker.exit_message()}",
                    stage=self._spec.stage,
                    status=worker.status,
                ) from error
            except BaseException:  # interrupted: what the worker answers now has no taker
                self._end(worker)
                raise
            return worker.open_answer(answer), worker
        finally:
            self._calls.release()

    def _take(self) -> Worker:
        with self._changed:
            self._set_dead_aside()
            if self._active is None:
                warm = [worker for worker in self._ready if not self._is_cold(worker)]
                if not warm:
                    self._raise_unavailable()
                self._ready.remove(warm[0])
                self._active = warm[0]
            return self._active

    def _set_dead_aside(self) -> None:
        """Set aside the workers that ended between calls."""
        idle = [worker for worker in (self._active, *self._ready) if worker is not None]
        if not (dead := [worker for worker in idle if worker.ended]):
            return
        self._ending += dead
        self._active = None if self._active in dead else self._active
        self._ready = deque(worker for worker in self._ready if worker not in dead)
        self._changed.notify_all()

    def _end(self, worker: Worker) -> None:
        """Kill the active worker, and measure how long that takes."""
        started = time.monotonic()
        gone = worker.kill()
        took = time.monotonic() - started + _AFTERMATH_S
        decayed = took + _MARGIN_DECAY * (self._margin_s - took)
        self._margin_s = max(took, decayed)  # a slow kill is remembered for a while
        with self._changed:
            self._active = None
            if not gone:
                self._ending.append(worker)
            self._changed.notify_all()

    def _raise_late(self, budget_ms: float, what: str, setting: str) -> NoReturn:
        stage = self._spec.stage
        raise DeadlineExceededError(
            f"{stage} was not answered within {budget_ms:g} ms: {what}. "
            f"Raise deadlines.{setting}, or find what takes so long",
            stage=stage,
            budget_ms=budget_ms,
        )

    def _make_unreadable(self, error: UnreadableAnswerError) -> TamiyoError:
        return self._spec.failure(
            f"the {self._spec.stage} worker's answer cannot be unpickled here: {error}",
            stage=self._spec.stage,
        )

    def _raise_unavailable(self) -> NoReturn:
        stage = self._spec.stage
        why = f"the last start failed: {self._problem}" if self._problem else "one is starting"
        raise WorkerUnavailableError(
            f"no {stage} worker is warm; {why}. Train on and ask again", stage=stage
        ) from self._problem

    def _keep(self) -> None:
        """Body of the keeper thread: start workers, warm them up, and reap killed ones."""
        backoff = 0.0
        while self._next_task(backoff):
            worker = None
            try:
                worker = self._claim()
                self._warm_up(worker)
            except (TamiyoError, OSError) as error:
                backoff = min(max(_FIRST_BACKOFF_S, 2 * backoff), _LAST_BACKOFF_S)
                self._give_up(worker, error)
            else:
                backoff = 0.0
                with self._changed:
                    self._coming, self._problem = None, None
                    self._ready.append(worker)
                    self._changed.notify_all()

    def _next_task(self, backoff: float) -> bool:
        """Wait until a worker is missing or cold; False once the pool closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, backoff)
            self._changed.wait_for(
                lambda: (
                    self._closing or self._needs_worker() or any(map(self._is_cold, self._ready))
                )
            )
            self._ending = [worker for worker in self._ending if not worker.reap(0)]
            return not self._closing

    def _claim(self) -> Worker:
        """Take a cold spare out of service until it is warm, or start a new worker."""
        with self._changed:
            cold = next(filter(self._is_cold, self._ready), None)
            if cold is not None:
                self._ready.remove(cold)
            self._coming = cold
        if cold is not None:
            return cold
        worker = Worker(self._spec)
        self._started += 1
        with self._changed:
            self._coming = worker
            if self._closing:
                worker.signal()
        return worker

    def _warm_up(self, worker: Worker) -> None:
        if not worker.loaded:
            self._ask(worker, self._load)
            worker.loaded = True
        for key, message in list(self._warmups.items()):
            if key not in worker.warm:
                self._ask(worker, message)
                worker.warm.add(key)

    def _ask(self, worker: Worker, message: Encoded) -> None:
        worker.open_answer(worker.exchange(message, time.monotonic() + self._spec.warmup_s))

    def _give_up(self, worker: Worker | None, error: Exception) -> None:
        if worker is not None:
            if not worker.kill():
                self._ending.append(worker)
            if isinstance(error, UnreadableAnswerError):
                error = self._make_unreadable(error)
            elif isinstance(error, ConnectionError):
                error = self._spec.failure(f"it {worker.exit_message()}", stage=self._spec.stage)
        with self._changed:
            self._coming, self._problem = None, error
            self._changed.notify_all()

    def _needs_worker(self) -> bool:
        return (self._active is not None) + len(self._ready) < 1 + self._spec.spares

    def _is_cold(self, worker: Worker) -> bool:
        return not self._warmups.keys() <= worker.warm
