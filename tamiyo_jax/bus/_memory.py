"""Buses: signed messages from one part of the training stack to others.

A bus moves envelopes and knows nothing of what is in them. The sender seals a payload, which
signs it together with its topic; the receiver verifies the envelope before it uses the payload.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from tamiyo_jax.contracts import Priority, Secret, sign_bytes, verify_bytes
from tamiyo_jax.errors import PublishError

__all__ = ["Bus", "Handler", "MemoryBus", "open_envelope", "seal"]

Handler = Callable[[bytes], object]

_SIGNATURE_BYTES = 44  # HMAC-SHA256 in base64


def seal(topic: str, payload: bytes, secret: Secret) -> bytes:
    """Sign a payload; returns the signature, 44 characters of base64, followed by the payload.

    The signature covers the topic too, so that a message cannot be moved to another topic.
    """
    return sign_bytes(_message_to_sign(topic, payload), secret).encode("ascii") + payload


def open_envelope(topic: str, envelope: bytes, secrets: Sequence[Secret]) -> bytes:
    """Verify an envelope received on `topic` and return its payload.

    Args:
      topic: where it was received.
      envelope: what `seal` made.
      secrets: the current key, and previous ones while they are being rotated out.

    Raises:
      SignatureError: no secret made this signature for this topic.
    """
    signature, payload = envelope[:_SIGNATURE_BYTES], envelope[_SIGNATURE_BYTES:]
    verify_bytes(_message_to_sign(topic, payload), signature.decode("latin-1"), secrets)
    return payload


def _message_to_sign(topic: str, payload: bytes) -> bytes:
    return topic.encode() + b"\0" + payload


class Bus(Protocol):
    """Takes messages at least once, and hands each to every group of consumers."""

    def publish(self, topic: str, payload: bytes, priority: Priority) -> None:
        """Accept a message; once this returns, the bus delivers it.

        HIGH and CRITICAL messages overtake others of their topic.

        Raises:
          PublishError: the bus did not accept it, or does not know; publish it again.
        """
        ...

    def consume(self, topic: str, group: str, handler: Handler) -> int:
        """Hand the messages that wait for a group to a handler, in turn.

        Consumers of one group share its messages; every group gets all of them. A message is
        acknowledged when the handler has returned. An error of the handler is raised here, and
        its message waits for the group again.

        Returns:
          The number of acknowledged messages; 0 if none was waiting.
        """
        ...


class MemoryBus:
    """A bus within a process, safe to share between threads.

    Messages published before their topic has a group wait for the first group; a later group
    receives what is published after its first `consume`.

    Args:
      capacity: messages of one topic that may wait for a group; beyond it `publish` refuses,
        so that a slow consumer does not exhaust the memory of the training process.
    """

    def __init__(self, capacity: int = 65_536) -> None:
        self._capacity = capacity
        self._topics: dict[str, dict[str | None, _Queue]] = {}
        self._published = 0
        self._lock = threading.Lock()

    def publish(self, topic: str, payload: bytes, priority: Priority) -> None:
        """Implement `Bus`."""
        with self._lock:
            queues = self._topics.setdefault(topic, {_NO_GROUP: []})
            for group, queue in queues.items():
                if len(queue) >= self._capacity:
                    raise PublishError(
                        f"{len(queue)} messages of {topic} wait for {group or 'a first consumer'}, "
                        "which is the bus's capacity; consume them, or give it more",
                        topic=topic,
                        group=group,
                        capacity=self._capacity,
                    )
            for queue in queues.values():
                rank = 0 if priority >= Priority.HIGH else 1
                heapq.heappush(queue, (rank, self._published, payload))
            self._published += 1

    def consume(self, topic: str, group: str, handler: Handler) -> int:
        """Implement `Bus`."""
        acknowledged = 0
        while (message := self._take(topic, group)) is not None:
            try:
                handler(message[2])
            except BaseException:
                self._put_back(topic, group, message)
                raise
            acknowledged += 1
        return acknowledged

    def _take(self, topic: str, group: str) -> _Message | None:
        with self._lock:
            queues = self._topics.setdefault(topic, {})
            if group not in queues:
                queues[group] = queues.pop(_NO_GROUP, [])
            queue = queues[group]
            return heapq.heappop(queue) if queue else None

    def _put_back(self, topic: str, group: str, message: _Message) -> None:
        with self._lock:
            heapq.heappush(self._topics[topic][group], message)


_Message = tuple[int, int, bytes]  # urgent ones first, then in the order of publishing
_Queue = list[_Message]
_NO_GROUP = None  # the group of what no group has asked for yet
