"""The optional redis-py: a client that answers soon, and URLs that may be told."""

# The types of redis-py are partial.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tamiyo_jax.errors import ConfigurationError

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["open_client", "public_url"]

_ANSWER_SECONDS = 2.0


def open_client(url: str, *, purpose: str, decode_responses: bool) -> tuple[Redis, type[Exception]]:
    """A client of a server, which is not asked for anything yet.

    Args:
      url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it.
      purpose: the class that needs the client, for the error that says so.
      decode_responses: whether answers are text rather than bytes.

    Returns:
      The client, and the root of the errors that its calls raise.

    Raises:
      ConfigurationError: redis-py is not installed, or cannot read the URL.
    """
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise ConfigurationError(f"{purpose} needs redis-py; install tamiyo_jax[redis]") from error
    try:
        # A call that failed is told, not repeated: whoever called knows how long it may wait.
        client = redis.Redis.from_url(
            url,
            decode_responses=decode_responses,
            socket_timeout=_ANSWER_SECONDS,
            socket_connect_timeout=_ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise ConfigurationError(
            f"{public_url(url)!r} is no URL of a Redis server: {error}"
        ) from error
    return client, redis.RedisError


def public_url(url: str) -> str:
    """The URL without user, password and query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
