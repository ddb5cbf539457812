"""A training loop whose plug asks a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from making import SECRET
from redis_server import RedisServer
from served import CONFIG, count, served

import tamiyo_jax as tj
from tamiyo_jax import Plug, host
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.serving import run_key

X = jax.random.normal(jax.random.key(0), (32, 4), jnp.float32)
TX = host.monitor(optax.chain(optax.sgd(0.1), host.tamiyo_scale()))


def loss_fn(params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((x @ params["dense"]["kernel"] - 1.0) ** 2)


@jax.jit
def train_step(state: Any) -> Any:
    params, opt_state = state
    loss, gradient = jax.value_and_grad(loss_fn)(params, X)
    updates, opt_state = TX.update(gradient, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss


@pytest.mark.usefixtures("standard_promotion")
def test_a_plug_on_a_server_trains_as_one_of_its_own(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAMIYO_SECRET", run_key(SECRET, "run-1").decode())
    monkeypatch.setenv("TAMIYO__DEADLINES__INFERENCE_MS", "60000")
    params = {"dense": {"kernel": jnp.zeros((4, 1), jnp.float32)}}
    state: Any = params, TX.init(params)
    said: list[str] = []
    config = tj.TamiyoConfig(
        **{**CONFIG.model_dump(), "packet": {"seedless": True}, "risk": {"detection": "relative"}}
    )
    options: dict[str, Any] = {"mode": "guard", "every": 5, "log": said.append}
    with (
        served(redis_server.url, tmp_path / "served", config=config, mode="guard") as metrics,
        Plug.open(
            tmp_path / "runs",
            params,
            loss_fn,
            X,
            server=redis_server.url,
            run_id="run-1",
            **options,
        ) as tamiyo,
    ):
        undone: list[int] = []
        for step in range(20):
            state, loss = train_step(state)
            state = tamiyo(state, jnp.float32(jnp.nan) if step == 17 else loss)
            undone.append(tamiyo.undone_steps)
        assert not any("without Tamiyo" in line for line in said), said
        assert any("ROLLBACK" in line for line in said), said
        assert undone[17:] == [0, 4, 0]
        assert count(metrics, "tamiyo_server_answers_total", result="decision") == 5
    assert not list((tmp_path / "runs").rglob("workers"))


def test_a_run_on_a_server_needs_both_its_url_and_its_id(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="run_id"):
        Plug.open(
            *(tmp_path, {"w": jnp.zeros(3)}, loss_fn, X),
            mode="guard",
            every=1,
            log=print,
            server="redis://localhost",
        )
