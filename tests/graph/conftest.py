from __future__ import annotations

from collections.abc import Callable

import pytest

from tamiyo_jax.contracts import (
    ActivationSpec,
    Blueprint,
    BlueprintTier,
    LayerSpec,
    ParameterSpec,
    SeedStage,
    SeedState,
    SystemStatePacket,
)


def _blueprint(blueprint_id: str = "bp", depth: int = 3, **fields: object) -> Blueprint:
    given: dict[str, object] = {
        "tier": BlueprintTier.SAFE,
        "risk": 0.25,
        "stage": 4,
        "candidate_score": 0.6,
        "layers": tuple(
            LayerSpec(f"L{i}", "dense", i, "relu", 2.0 + i, 100 * (i + 1), 0.1, 1.0 + i, 0.5)
            for i in range(depth)
        ),
        "activations": tuple(
            ActivationSpec(f"A{i}", "relu", 0.1, 0.9, 64.0, 0.4) for i in range(2)
        ),
        "parameters": (ParameterSpec("lr", 0.1, 0.5), ParameterSpec("wd", -1.0, 1.0)),
        "chain": True,
    }
    return Blueprint(blueprint_id=blueprint_id, **{**given, **fields})  # type: ignore[arg-type]


def _seed(index: int = 0, **fields: object) -> SeedState:
    given: dict[str, object] = {
        "stage": SeedStage.TRAINING,
        "gradient_norm": 1.5 + index,
        "learning_rate": 0.02,
        "risk_score": 0.3,
        "layer_depth": index,
        "age_epochs": 2,
    }
    return SeedState(seed_id=f"seed-{index}", **{**given, **fields})  # type: ignore[arg-type]


def _packet(**fields: object) -> SystemStatePacket:
    given: dict[str, object] = {
        "packet_id": "p",
        "training_run_id": "run",
        "blueprint_id": "bp",
        "current_epoch": 3,
        "global_step": 120,
        "validation_loss": 0.7,
        "training_loss": 0.6,
        "training_metrics": {
            "loss": 0.9,
            "validation_loss": 0.7,
            "training_loss": 0.6,
            "gradient_norm": 1.2,
            "samples_per_s": 4000.0,
            "hook_latency_ms": 10.0,
            "epochs_total": 12.0,
        },
        "seeds": (_seed(0), _seed(1)),
    }
    return SystemStatePacket(**{**given, **fields})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make_blueprint() -> Callable[..., Blueprint]:
    return _blueprint


@pytest.fixture(scope="session")
def make_seed() -> Callable[..., SeedState]:
    return _seed


@pytest.fixture(scope="session")
def make_packet() -> Callable[..., SystemStatePacket]:
    return _packet
