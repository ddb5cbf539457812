"""A packet holds what was measured, under the names that the graph and the gate read."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from making import make_packet, make_seed

from tamiyo_jax import growth, host
from tamiyo_jax.contracts import HardwareContext, SeedStage, validate_packet
from tamiyo_jax.errors import ConfigurationError

LAYERS = {"a": {"w": jnp.ones(1, jnp.float32)}, "b": {"w": jnp.ones(1, jnp.float32)}}
STATISTICS = host.statistics(host.monitor(optax.identity()).init(LAYERS))._replace(
    # Gradient norm, weight norm, update ratio and gradient variance.
    layers=np.array([[3.0, 4.0], [1.0, 2.0], [0.1, 0.2], [0.5, 1.5]], np.float32),
    conflict=np.float32(0.5),
)
READING = host.Hardware(HardwareContext("gpu", "0"), {"gpu_mem_free_gb": 1.5})

SIGNALS = (
    *(
        "loss_z",
        "loss_rise",
        "gradient_z",
        "layer_gradient_z",
        "metric_z",
        "update_rise",
        "update_jump",
    ),
    *("high_updates", "sustained_rise"),
    *("sustained_z", "high_gradients", "steps_without_progress", "step_refused", "steps_refused"),
    "ruinous_in_row",
)

ARGUMENTS = {
    "layers": ("a", "b"),
    "statistics": STATISTICS,
    "training_loss": 0.7,
    "seeds": [make_seed("s0")],
    "metrics": {},
}


def packet(**changes):
    identity = make_packet(hardware=None, validation_loss=None)
    return host.packet_from(identity, **{**ARGUMENTS, **changes})


def test_the_metrics_are_those_that_the_specifications_name():
    made = packet()
    validate_packet(made)
    assert made.training_loss == 0.7
    assert made.training_metrics == {
        **dict.fromkeys(SIGNALS, 0.0),
        "loss": 0.7,
        "training_loss": 0.7,
        "gradient_norm": 5.0,
        "grad_var": 1.0,
        "grad_conflict_rate": 0.5,
        "layer/a/weight_norm": 1.0,
        "layer/a/gradient_norm": 3.0,
        "layer/b/weight_norm": 2.0,
        "layer/b/gradient_norm": 4.0,
    }
    assert [seed.seed_id for seed in made.seeds] == ["s0"]
    assert all(type(value) is float for value in made.training_metrics.values())


def test_a_validation_loss_is_among_the_metrics_once_there_is_one():
    def metrics(validation_loss):
        identity = make_packet(validation_loss=validation_loss)
        return host.packet_from(identity, **ARGUMENTS).training_metrics

    assert metrics(0.5)["validation_loss"] == 0.5
    assert "validation_loss" not in metrics(None)


def test_statistics_on_a_device_make_the_same_packet():
    assert packet(statistics=jax.tree.map(jnp.asarray, STATISTICS)) == packet()


def test_a_reading_of_the_hardware_goes_into_its_field_and_the_metrics():
    made = packet(hardware=READING)
    assert made.hardware == READING.context
    assert made.training_metrics["gpu_mem_free_gb"] == 1.5
    assert packet().hardware is None


@pytest.mark.parametrize("norm", [np.nan, np.inf])
def test_a_gradient_norm_that_is_not_finite_is_none_in_a_valid_packet(norm):
    def seed(norm):
        return host.seed_state(
            "s0",
            growth.enter(growth.dormant(), SeedStage.TRAINING),
            host.SeedMeasurements(gradient_norm=norm, contribution=norm),
            timing=growth.Timing(5, 5),
            steps_per_epoch=1,
        )

    assert seed(0.5).gradient_norm == 0.5
    broken = seed(norm)
    assert broken == replace(broken, gradient_norm=None)
    validate_packet(packet(seeds=[broken], training_loss=np.nan))


def test_the_callers_metrics_win():
    made = packet(hardware=READING, metrics={"gpu_mem_free_gb": 9.0, "samples_per_s": 10.0})
    assert made.training_metrics["gpu_mem_free_gb"] == 9.0
    assert made.training_metrics["samples_per_s"] == 10.0


def test_names_of_other_layers_raise():
    with pytest.raises(ConfigurationError, match="3 layers are named and 2 were measured"):
        packet(layers=("a", "b", "c"))
