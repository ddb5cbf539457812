"""Clients of the optional redis-py, with short timeouts and no credentials in messages."""

# The types of redis-py are partial.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from tamiyo_jax.errors import ConfigurationError

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["is_redis_url", "open_client", "public_url"]

_ANSWER_SECONDS = 2.0
_SCHEMES = ("redis", "rediss", "unix")


def open_client(
    url: str, *, purpose: str, decode_responses: bool, timeout_s: float = _ANSWER_SECONDS
) -> tuple[Redis, type[Exception]]:
    """Create a client of a server; nothing is sent yet.

    Args:
      url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it.
      purpose: the class that needs the client, for the error that says so.
      decode_responses: whether answers are text rather than bytes. Bytes that are not UTF-8
        become surrogates, which no valid id or document contains.
      timeout_s: seconds to wait for a connection, and for each answer.

    Returns:
      The client, and the root of the errors that its calls raise.

    Raises:
      ConfigurationError: redis-py is not installed, or cannot read the URL. The error never
        contains the URL, since any part of it may be a password.
    """
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise ConfigurationError(f"{purpose} needs redis-py; install tamiyo_jax[redis]") from error
    client = None
    if _parse(url) is not None:
        try:
            # A call that failed raises and is not repeated: the caller knows how long it may wait.
            client = redis.Redis.from_url(
                url,
                decode_responses=decode_responses,
                encoding_errors="surrogateescape",
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
            )
            pool = client.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # checks the options of the query
        except (ValueError, TypeError, redis.RedisError):
            client = None
    if client is None:  # raised here, so that no cause or context of the error holds the URL
        raise ConfigurationError(
            f"{purpose}: the URL of the Redis server cannot be read; it is not shown because it "
            "may contain a password. Give redis://[[user]:password@]host[:port][/database], and "
            "percent-encode / ? # @ : in user and password",
            field="url",
        )
    return client, redis.RedisError


def is_redis_url(text: str) -> bool:
    """Whether a text begins as a Redis URL, also if mistyped as ``redis:/`` or ``redis//``."""
    return re.match(rf"({'|'.join(_SCHEMES)})(:|//)", text, re.IGNORECASE) is not None


def public_url(url: str) -> str:
    """Return scheme, host, port and database of a URL, or its path for ``unix``."""
    parts = _parse(url)
    if parts is None:
        return "(a URL that cannot be read)"
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    host = parts.hostname or "localhost"
    host = f"[{host}]" if ":" in host else host
    port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}{parts.path}"


def _parse(url: str) -> SplitResult | None:
    """Split a URL; None if it is malformed, or may hold a password outside its place."""
    try:
        url.encode()
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # UnicodeError is a ValueError
        return None
    # An unescaped / ? or # in a password ends the host early and leaves the @ behind it.
    misplaced = any("@" in part for part in (parts.path, parts.query, parts.fragment))
    misplaced |= parts.netloc.count("@") > 1
    if parts.scheme == "unix":
        well_formed = bool(parts.path) and not parts.hostname
    else:
        database = parts.path.removeprefix("/")
        well_formed = parts.scheme in _SCHEMES and (not database or database.isdecimal())
    printable = unquote(url).isprintable()
    return parts if well_formed and port_is_valid and printable and not misplaced else None
