"""Whatever is wrong with the URL of a Redis server, no part of it that may be secret is shown."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import invoke
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo_jax._redis_client import public_url
from tamiyo_jax.bus import RedisBus
from tamiyo_jax.config import resolve
from tamiyo_jax.contracts import Priority
from tamiyo_jax.errors import ConfigurationError, PersistenceError, PublishError, TamiyoError
from tamiyo_jax.library import RedisBlueprintLibrary

PASSWORD = "hunter2hunter2"

# A URL as a person may mistype it: the password is before an @ or in the query, and anything else
# may be missing, doubled or odd.
ODD = st.text(st.sampled_from("/?#@:[]%&= \\\n\x00\x1b\u202eäπ\udc80"), max_size=2)
SCHEMES = st.sampled_from(["redis://"] * 4 + ["rediss://", "unix://", "redis:/", "http://", ""])
HOSTS = st.sampled_from(["127.0.0.1:1", "127.0.0.1:1/0", "[::1]:1", "[::1", "127.0.0.1:port"])
URLS = st.one_of(
    st.builds(
        "".join,
        st.tuples(
            SCHEMES,
            st.sampled_from(["user:", ":", "", "1", "user:4711/", "user:4711?", ":4711#"]),
            ODD,
            st.just(PASSWORD),
            ODD,
            st.sampled_from(["@", "@@"]),
            HOSTS,
            ODD,
        ),
    ),
    st.builds(
        "".join,
        st.tuples(
            SCHEMES,
            HOSTS,
            st.sampled_from(["?", "/?", "/0?db=", "?db=0&"]),
            st.sampled_from(["password=", "unknown=", "ssl_cert_reqs=", ""]),
            ODD,
            st.just(PASSWORD),
        ),
    ),
)


def everything_shown(error: TamiyoError) -> str:
    """The message, the attributes and the traceback with all causes."""
    return "\n".join(
        (str(error), repr(error.context), *traceback.format_exception(error)),
    )


def try_to_open(opens: Callable[[str], object], url: str) -> str:
    """What a user can see of a library or a bus at this URL, or of the error."""
    try:
        return repr(opens(url))
    except ConfigurationError as error:
        chained = [repr(error.__cause__), repr(error.__context__)]
        return "\n".join((str(error), repr(error.context), *chained))
    except PersistenceError as error:
        return everything_shown(error)


@given(url=URLS)
@settings(max_examples=300)
def test_an_odd_url_raises_a_typed_error_that_does_not_show_the_password(url: str) -> None:
    assert PASSWORD not in public_url(url)
    assert PASSWORD not in try_to_open(RedisBus, url)
    assert PASSWORD not in try_to_open(RedisBlueprintLibrary, url)


def test_a_bus_that_cannot_be_reached_does_not_show_its_password() -> None:
    bus = RedisBus(f"redis://user:{PASSWORD}@127.0.0.1:1/0?client_name={PASSWORD}")
    with pytest.raises(PublishError) as failed:
        bus.publish("topic", b"", Priority.NORMAL)
    assert PASSWORD not in everything_shown(failed.value) + repr(bus)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:pa/{PASSWORD}@localhost",  # the host ends at the slash
        f"redis://:12/{PASSWORD}@localhost",  # and 12 would be a port
        f"redis://:{PASSWORD}#1@localhost",
        f"redis://:{PASSWORD}@[::1",
        f"redis://:{PASSWORD}@localhost:port",
        f"redis://localhost?unknown={PASSWORD}",
        f"rediss://localhost?ssl_cert_reqs={PASSWORD}",
        f"redis:/user:{PASSWORD}@localhost",
        f"redis://user:{PASSWORD}@" + "h" * 64,
    ],
)
def test_the_command_line_does_not_show_the_password_of_a_malformed_url(
    url: str,
) -> None:
    mistyped = url.replace("://", "//", 1)
    for library in (url, mistyped):
        result = invoke("blueprint", "list", "--library", library)
        assert result.exit_code in (1, 2)
        assert PASSWORD not in result.stdout + result.stderr


def test_a_valid_url_is_shown_with_host_port_and_database_only() -> None:
    shown = {
        f"redis://user:{PASSWORD}@example.org:6380/3?client_name={PASSWORD}": (
            "redis://example.org:6380/3"
        ),
        f"redis://:{PASSWORD}@[::1]:1": "redis://[::1]:1",
        "redis://": "redis://localhost",
        f"unix://:{PASSWORD}@/run/redis.sock?db=1": "unix:///run/redis.sock",
    }
    assert {url: public_url(url) for url in shown} == shown


def test_a_secret_in_the_place_of_its_variable_s_name_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "tamiyo.toml"
    path.write_text(f'[security]\nsecret_env = "{PASSWORD}!"\n')
    with pytest.raises(ConfigurationError, match="secret_env") as refused:
        resolve(path)
    assert PASSWORD not in everything_shown(refused.value)
