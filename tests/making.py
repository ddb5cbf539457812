"""Packets, blueprints and controllers for tests; every value that matters is an argument."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tamiyo_jax.config import TamiyoConfig
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
from tamiyo_jax.library import MemoryBlueprintLibrary
from tamiyo_jax.service import Tamiyo

SECRET = b"a secret of tests, long enough"

# Deadlines are not what these tests are about, and the machine may be busy.
PATIENT = {"inference_ms": 60_000.0, "metadata_ms": 60_000.0}


class Clock:
    """A clock that moves one millisecond per reading."""

    def __init__(self, now_ns: int = 1_700_000_000_000_000_000) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        self.now_ns += 1_000_000
        return self.now_ns


def make_config(**sections: Any) -> TamiyoConfig:
    return TamiyoConfig(
        **{
            "deadlines": PATIENT,
            "policy": {"sage_width": 16, "gat_width": 8, "heads": 2},
            **sections,
        }
    )


def make_blueprint(blueprint_id: str = "host", **fields: Any) -> Blueprint:
    defaults: dict[str, Any] = {
        "tier": BlueprintTier.SAFE,
        "risk": 0.2,
        "stage": 3,
        "layers": tuple(
            LayerSpec(f"L{i}", "dense", i, activation="relu", parameter_count=100 * (i + 1))
            for i in range(3)
        ),
        "activations": (ActivationSpec("A0", "relu", saturation_rate=0.1),),
        "parameters": (ParameterSpec("lr", 0.0, 1.0),),
        "chain": True,
        "allowed_blending_methods": ("linear", "cosine"),
    }
    return Blueprint(blueprint_id, **{**defaults, **fields})


def make_seed(
    seed_id: str = "s0", stage: SeedStage = SeedStage.DORMANT, **fields: Any
) -> SeedState:
    defaults: dict[str, Any] = {
        "gradient_norm": 0.5,
        "learning_rate": 0.01,
        "risk_score": 0.2,
        "layer_depth": 1,
        "age_epochs": 2,
    }
    return SeedState(seed_id, stage, **{**defaults, **fields})


def make_packet(step: int = 0, **fields: Any) -> SystemStatePacket:
    defaults: dict[str, Any] = {
        "packet_id": f"packet-{step}",
        "training_run_id": "run",
        "blueprint_id": "host",
        "candidate_blueprint_ids": ("grow-a", "grow-b"),
        "current_epoch": step,
        "global_step": step * 10,
        "validation_loss": 0.9,
        "training_loss": 0.8,
        "training_metrics": {
            "loss": 0.8,
            "gradient_norm": 1.0,
            "samples_per_s": 4000.0,
            "hook_latency_ms": 1.0,
            "epochs_total": 100.0,
        },
        "seeds": (make_seed("s0"), make_seed("s1", SeedStage.TRAINING)),
        "optimizer_id": "adam",
    }
    return SystemStatePacket(**{**defaults, **fields})


def make_library(**fields: Any) -> MemoryBlueprintLibrary:
    library = MemoryBlueprintLibrary()
    for name in ("host", "grow-a", "grow-b"):
        library.put(make_blueprint(name, **fields))
    return library


def open_tamiyo(directory: Path, **arguments: Any) -> Tamiyo:
    """A heuristic controller unless `arguments` say otherwise."""
    defaults: dict[str, Any] = {
        "library": make_library(),
        "policy": "heuristic",
        "secret": SECRET,
        "clock": Clock(),
        "isolation": "inline",
    }
    config = arguments.pop("config", make_config())
    return Tamiyo.open(config, directory=directory, **{**defaults, **arguments})


def story(length: int) -> list[SystemStatePacket]:
    """Recorded packets of a run whose loss falls, stalls and jumps, with seeds that live."""
    stages = (SeedStage.DORMANT, SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.BLENDING)
    packets = []
    for step in range(length):
        loss = max(0.4, 1.0 - 0.05 * step) + (0.3 if step % 17 == 16 else 0.0)
        seeds = (
            make_seed("s0", stages[(step // 4) % 4], metrics={"alpha": (step % 5) / 4}),
            make_seed(f"s{1 + step // 10}", SeedStage.DORMANT, gradient_norm=None),
        )
        packet = make_packet(step, validation_loss=loss, training_loss=loss * 0.9, seeds=seeds)
        metrics = {**packet.training_metrics, "loss": loss * 0.9, "gradient_norm": 1 + loss}
        packets.append(replace(packet, training_metrics=metrics))
    return packets
