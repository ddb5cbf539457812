"""Signed messages between processes, and the publisher that sends reports over them."""

from tamiyo_jax.bus._memory import Bus, MemoryBus, open_envelope, seal
from tamiyo_jax.bus._publishing import Publisher
from tamiyo_jax.bus._reading import FIELD_REPORTS, EnvelopeReader, ReportReader
from tamiyo_jax.bus._redis import RedisBus
from tamiyo_jax.bus._republishing import dropped_reports, republish

__all__ = [
    "FIELD_REPORTS",
    "Bus",
    "EnvelopeReader",
    "MemoryBus",
    "Publisher",
    "RedisBus",
    "ReportReader",
    "dropped_reports",
    "open_envelope",
    "republish",
    "seal",
]
