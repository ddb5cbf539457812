"""One service that decides for many runs, over Redis Streams, and its client."""

from tamiyo_jax.serving._client import Client, connect
from tamiyo_jax.serving._limits import Limits
from tamiyo_jax.serving._messages import run_key
from tamiyo_jax.serving._metrics import HttpEndpoint, Metrics
from tamiyo_jax.serving._server import Server

__all__ = [
    "Client",
    "HttpEndpoint",
    "Limits",
    "Metrics",
    "Server",
    "connect",
    "run_key",
]
