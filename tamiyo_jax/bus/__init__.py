"""Signed messages between processes, and the publisher that sends reports over them."""

from tamiyo_jax.bus._memory import Bus, MemoryBus, open_envelope, seal
from tamiyo_jax.bus._publishing import FIELD_REPORTS, Publisher, ReportReader
from tamiyo_jax.bus._redis import RedisBus
from tamiyo_jax.bus._republishing import dropped_reports, republish

__all__ = [
    "FIELD_REPORTS",
    "Bus",
    "MemoryBus",
    "Publisher",
    "RedisBus",
    "ReportReader",
    "dropped_reports",
    "open_envelope",
    "republish",
    "seal",
]
