"""The client of a training run: the server decides, and this process has no workers.

A packet goes into the run's stream, and the answer comes out of another within the deadline, or
the step raises. A late answer is never returned for another packet, since answers carry
the number of theirs.
"""

# The types of redis-py are partial.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import threading
import time
from typing import Any, Self, cast

from tamiyo_jax._redis_client import open_client, public_url
from tamiyo_jax.clock import steady_time_ns
from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Secret, SystemStatePacket, encode_packet, validate_packet
from tamiyo_jax.decision import Decision
from tamiyo_jax.errors import (
    DeadlineExceededError,
    InvalidMessageError,
    InvalidPacketError,
    SignatureError,
    TamiyoError,
    WorkerUnavailableError,
)
from tamiyo_jax.risk import RiskState, admit_call, call_failed, call_succeeded
from tamiyo_jax.service import resolve_secrets
from tamiyo_jax.serving._messages import (
    FIELD,
    HELLO,
    Request,
    RunKeys,
    open_answer,
    open_request,
    seal_request,
)

__all__ = ["Client", "connect"]

_PATIENCE_S = 15.0  # a server has to notice the run, and perhaps that another server died
_HELLO_S = 0.5
_RETRY_S = 0.005
_ENTRIES = 16  # of a run's stream at once; the server reads faster than a client writes

_Result = Decision | TamiyoError | None


class Client:
    """A run whose packets are decided on by a server; made by `connect`.

    Calls from several threads are served one after another. A context manager.
    """

    def __init__(self, url: str, run_id: str, *, config: TamiyoConfig, secret: Secret) -> None:
        self._keys = RunKeys.of(run_id)
        self._run_id = run_id
        self._config = config
        self._secret = secret
        self._url = public_url(url)
        deadlines = config.deadlines
        self._budget_ms = deadlines.inference_ms + deadlines.metadata_ms
        self._redis, self._error = open_client(
            url,
            purpose="Client",
            decode_responses=False,
            timeout_s=max(self._budget_ms / 1e3, _HELLO_S) + 0.05,
        )
        self._risk = RiskState()
        self._number = 0
        self._asked: tuple[bytes, str] | None = None
        self._position = "0-0"
        self._lock = threading.Lock()

    def step(self, packet: SystemStatePacket) -> Decision:
        """Let the server decide on one packet; see `Tamiyo.step`.

        The same packet again, right after a step with it has raised, asks for the same decision:
        if the server has made it by now, it is returned at once. A packet that the server did not
        reach within the deadline is not decided on.

        Raises:
          DeadlineExceededError: there was no answer within ``deadlines.inference_ms +
            deadlines.metadata_ms``; `stage` is ``"server"``. Train on without Tamiyo.
          CircuitOpenError: that happened ``breakers.failures`` times in a row; nothing was sent.
          WorkerUnavailableError: Redis cannot be reached.
          TamiyoError: what `Tamiyo.step` raised on the server.
        """
        with self._lock:
            self._check(packet)
            self._risk = admit_call(self._risk, "inference", steady_time_ns())
            try:
                result = self._ask(encode_packet(packet))
            except (DeadlineExceededError, WorkerUnavailableError):
                now_ns = steady_time_ns()
                self._risk, _ = call_failed(
                    self._risk, "inference", now_ns, self._number, self._config.breakers
                )
                raise
            self._risk, _ = call_succeeded(self._risk, "inference")
        if isinstance(result, Decision):
            return result
        raise result

    def close(self) -> None:
        """Close the connection; closing twice is harmless."""
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._url!r}, {self._run_id!r})"

    def greet(self) -> None:
        """Wait until a server decides for the run, and learn where its streams are.

        Raises:
          WorkerUnavailableError: there is none, or it has another key for this run.
        """
        until = time.monotonic() + _PATIENCE_S
        last = "no server answered; start tamiyo-jax serve with the secret of this run's key"
        while time.monotonic() < until:
            try:
                self._find_end()
                if self._exchange(HELLO, b"", _HELLO_S) is None:
                    return
            except DeadlineExceededError:
                continue
            except self._error as error:
                last = str(error)
                time.sleep(_HELLO_S)
        raise WorkerUnavailableError(f"{self._url}, run {self._run_id}: {last}", stage="server")

    def _check(self, packet: SystemStatePacket) -> None:
        validate_packet(packet, max_metrics=self._config.packet.max_metrics)
        if packet.training_run_id != self._run_id:
            raise InvalidPacketError(
                f"training_run_id is {packet.training_run_id!r}; this client is of the run "
                f"{self._run_id!r}",
                field="training_run_id",
                value=packet.training_run_id,
            )

    def _ask(self, encoded: bytes) -> Decision | TamiyoError:
        if self._asked is not None and self._asked[0] == encoded:
            self._position = self._asked[1]  # from where the answer comes, if it came meanwhile
        else:
            self._number += 1
            self._asked = encoded, self._position
        budget_s = self._budget_ms / 1e3
        started = time.monotonic()
        failure: Exception | None = None
        while (left := started + budget_s - time.monotonic()) > 0:
            try:
                result = self._exchange(self._number, encoded, left)
            except self._error as error:
                failure = error
                time.sleep(min(_RETRY_S, left))
                continue
            self._asked = None
            return cast("Decision | TamiyoError", result)
        if failure is not None:
            raise WorkerUnavailableError(
                f"{self._url}: {failure}; the step goes on without Tamiyo", stage="server"
            ) from failure
        raise self._late(started)

    def _exchange(self, number: int, encoded: bytes, seconds: float) -> _Result:
        """Send a message and wait for the answer with its number; others are passed over."""
        until = time.monotonic() + seconds
        request = Request(number, int(seconds * 1e3), encoded)
        message: dict[Any, Any] = {FIELD: seal_request(self._keys, request, self._secret)}
        pipe = self._redis.pipeline(transaction=False)
        pipe.xadd(self._keys.packets, message, maxlen=_ENTRIES, approximate=False)
        pipe.xread({self._keys.answers: self._position}, block=max(1, int(seconds * 1e3)))
        _, found = pipe.execute()
        while True:
            for entry, fields in found[0][1] if found else ():
                self._position = entry.decode()
                answered, result = self._open(fields)
                if answered == number:
                    return result
            left = until - time.monotonic()
            if left <= 0:
                raise self._late(until - seconds)
            found = cast(
                "Any",
                self._redis.xread(
                    {self._keys.answers: self._position}, block=max(1, int(left * 1e3))
                ),
            )

    def _open(self, fields: dict[bytes, bytes]) -> tuple[int, _Result]:
        """An answer; one that was not signed with this key is of no packet."""
        try:
            return open_answer(self._keys, fields.get(FIELD, b""), self._secret)
        except SignatureError:
            return -1, None

    def _find_end(self) -> None:
        """Go on behind what another client of this run sent and got, as before a restart."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.xrevrange(self._keys.answers, count=_ENTRIES)
        pipe.xrevrange(self._keys.packets, count=_ENTRIES)
        answers, packets = cast("Any", pipe.execute())
        if answers:
            self._position = answers[0][0].decode()
        numbers = [self._open(fields)[0] for _, fields in answers]
        for _, fields in packets:
            numbers.append(self._number_of(fields))
        self._number = max(self._number, *numbers, HELLO)

    def _number_of(self, fields: dict[bytes, bytes]) -> int:
        try:
            return open_request(self._keys, fields.get(FIELD, b""), self._secret).number
        except (SignatureError, InvalidMessageError):
            return HELLO

    def _late(self, started: float) -> DeadlineExceededError:
        latency_ms = (time.monotonic() - started) * 1e3
        return DeadlineExceededError(
            f"the server did not answer within {self._budget_ms:g} ms; a late answer is "
            "discarded. Look at its /healthz and /metrics, or raise deadlines.inference_ms",
            stage="server",
            budget_ms=self._budget_ms,
            latency_ms=latency_ms,
        )


def connect(
    url: str, run_id: str, *, secret: bytes | None = None, config: TamiyoConfig | None = None
) -> Client:
    """Connect a training run to a `tamiyo-jax serve`.

    It has the `step` of a controller, and starts no process. ``tamiyo_jax[redis]`` is needed.

    Args:
      url: of Redis, as for `RedisBus`.
      run_id: `training_run_id` of all packets: 1 to 128 letters, digits, dots, underscores
        and dashes.
      secret: the run's key, which `run_key` and ``tamiyo-jax run-key`` derive; it verifies
        commands too. None reads the variable ``security.secret_env``.
      config: gives deadlines, breakers and limits; None is `TamiyoConfig.load`.

    Raises:
      MissingSecretError: no secret.
      ConfigurationError: redis-py is not installed, or the URL or the id cannot be used.
      WorkerUnavailableError: no server took the run within 15 s.
    """
    settings = TamiyoConfig.load() if config is None else config
    client = Client(url, run_id, config=settings, secret=resolve_secrets(settings, secret)[0])
    try:
        client.greet()
    except BaseException:
        client.close()
        raise
    return client
