"""A Redis that is reached by TLS alone, with a certificate of an authority of its own."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from served import client_of, put_blueprints, served, story_of

from tamiyo_jax.errors import PersistenceError


def test_client_and_server_speak_tls_and_refuse_an_unknown_certificate(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server here")
    redis = subprocess.Popen(
        [
            *(program, "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1"),
            *("--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem"),
            *("--tls-ca-cert-file", "cert.pem", "--tls-auth-clients", "no", "--save", ""),
        ],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    try:
        url = f"rediss://127.0.0.1:{port}/0"
        known = f"{url}?ssl_ca_certs={tmp_path / 'cert.pem'}"
        wait_until_up(redis, known)
        put_blueprints(known)
        with served(known, tmp_path / "served"), client_of(known, "run-1") as client:
            assert client.step(story_of("run-1", 1)[0]).action
        with pytest.raises(PersistenceError, match="certificate"):
            put_blueprints(url)
    finally:
        redis.kill()
        redis.wait()


def make_certificate(directory: Path) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("there is no openssl here")
    subprocess.run(
        [
            *(program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *(
                "-nodes",
                "-days",
                "1",
                "-subj",
                "/CN=redis",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
            ),
            *("-keyout", "key.pem", "-out", "cert.pem"),
        ],
        cwd=directory,
        check=True,
        capture_output=True,
    )
    ssl.create_default_context(cafile=directory / "cert.pem")


def wait_until_up(process: subprocess.Popen[bytes], url: str) -> None:
    until = time.monotonic() + 20.0
    while process.poll() is None:
        assert time.monotonic() < until, "redis-server does not answer"
        try:
            with Redis.from_url(url) as redis:
                redis.ping()
                return
        except RedisConnectionError:
            time.sleep(0.02)
    pytest.skip("this redis-server was built without TLS")
