"""Worker processes that can be killed, warm spares for them, and the messages between."""

from tamiyo_jax.workers._messages import Load, Raised
from tamiyo_jax.workers._pool import WorkerPool
from tamiyo_jax.workers._worker import WorkerSpec, worker_environment

__all__ = [
    "Load",
    "Raised",
    "WorkerPool",
    "WorkerSpec",
    "worker_environment",
]
