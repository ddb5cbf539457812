"""The `Tamiyo` service: a packet goes in, a signed and journalled decision comes out."""

from tamiyo_jax.service._assembly import resolve_secrets
from tamiyo_jax.service._fleet import Fleet
from tamiyo_jax.service._multihost import MultihostTamiyo
from tamiyo_jax.service._service import Tamiyo

__all__ = [
    "Fleet",
    "MultihostTamiyo",
    "Tamiyo",
    "resolve_secrets",
]
