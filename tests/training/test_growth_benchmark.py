"""The benchmark of growth compares what it says it compares."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from rich.console import Console

from tamiyo_jax.demo import digits_task
from tamiyo_jax.host import layer_names, live_parameters
from tamiyo_jax.training import Task
from tamiyo_jax.training import _loop as loop

pytest.importorskip("mnist1d")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Optax's own optimisers and schedules mix dtypes.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("standard_promotion")]


@pytest.fixture(scope="module")
def growth() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("growth")
        for name in ("growth", "growth_gpt_report", "growth_report", "mnist1d_task"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def digits() -> Task:
    return digits_task(0)


@pytest.fixture(scope="module")
def mnist1d(growth) -> Task:
    return growth.mnist1d_task()


def train(task: Task, epochs: int) -> loop.RunResult:
    steps = epochs * task.steps_per_epoch
    return loop.run(task, None, steps=steps, state=loop.init_loop(task, 0), run_id="run")


def test_the_small_network_trains_as_one_whose_slots_stay_closed(growth, digits) -> None:
    closed, small = train(digits, 2), train(growth.without_slots(digits, None), 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
        small.state.host.params["host"],
        closed.state.host.params,
    )
    assert small.parameters_after == closed.parameters_after
    assert not small.state.host.slots


def test_the_small_network_computes_nothing_for_slots(growth, digits) -> None:
    small = growth.without_slots(digits, None)
    params = loop.init_loop(small, 0).host.params
    forward = jax.jit(lambda params, x: small.logits(params, {}, {}, x))
    counted = forward.lower(params, small.test.inputs).compile().cost_analysis()
    layers = 2 * len(small.test.labels) * (64 * 4 + 4 * 4 + 4 * 10)
    assert counted is not None
    assert layers <= counted["flops"] < 1.5 * layers


def test_the_big_network_starts_as_one_with_every_slot_grown(growth, digits) -> None:
    blueprint = growth.STUDIES["digits"].big
    grown = loop.grow_all(digits, loop.init_loop(digits, 0), blueprint).host
    big = growth.without_slots(digits, blueprint)
    alone = loop.init_loop(big, 0).host
    seeds = {name: slot.params for name, slot in grown.slots.items()}
    np.testing.assert_allclose(
        big.logits(alone.params, {}, {}, digits.test.inputs),
        digits.logits(grown.params, seeds, loop.gates_of(grown.slots), digits.test.inputs),
        rtol=0,
        atol=1e-5,
    )
    assert live_parameters(alone) == live_parameters(grown)


def test_every_parameter_of_the_big_network_learns(growth, digits) -> None:
    big = growth.without_slots(digits, "mlp-wide")
    before, after = loop.init_loop(big, 0).host.params, train(big, 1).state.host.params
    assert all(
        np.any(np.asarray(a) != np.asarray(b))
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )


def test_mnist1d_has_no_example_in_two_parts(growth, mnist1d) -> None:
    parts = [mnist1d.train, mnist1d.validation, mnist1d.test]
    assert [part.inputs.shape for part in parts] == [(3200, 40), (800, 40), (1000, 40)]
    together = np.concatenate([np.asarray(part.inputs) for part in parts])
    assert len(np.unique(together, axis=0)) == 5000
    assert all(set(np.asarray(part.labels).tolist()) == set(range(10)) for part in parts)


def test_the_blueprint_of_the_mnist1d_host_names_the_layers_that_are_measured(mnist1d) -> None:
    state = loop.init_loop(mnist1d, 0).host
    layers = mnist1d.blueprint.layers
    assert {layer.layer_id for layer in layers} == set(layer_names(state.params))
    assert sum(layer.parameter_count or 0 for layer in layers) == live_parameters(state)
    for slot, depth in mnist1d.slot_depths.items():
        assert layers[depth].layer_id == slot.replace("seed", "convolution")


def test_a_seed_gives_three_networks_and_they_a_table_and_a_plot(growth, tmp_path) -> None:
    rows = [growth.asdict(run) for run in growth.measure("mnist1d", 0, 2)]
    assert sorted(row["variant"] for row in rows) == ["big", "grown", "small"]
    assert all(0 < row["accuracy"] < 1 and row["seconds"] > 0 for row in rows)
    assert all(len(row["validation"]) == 2 for row in rows)
    for row in rows:
        assert (row["compiled_seconds"] == row["seconds"]) == (row["variant"] != "grown")
    sizes = {row["variant"]: row["parameters"] for row in rows}
    assert sizes["small"] == sizes["grown"] < sizes["big"]  # nothing grows in two epochs
    growth.plot(str(tmp_path / "plot.png"), rows)
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_table_holds_means_intervals_and_the_gain_of_each_seed(growth) -> None:
    accuracies = {
        "small": (0.80, 0.81, 0.82, 0.83, 0.84),
        "grown": (0.90, 0.91, 0.92, 0.93, 0.94),
        "big": (0.91, 0.91, 0.91, 0.91, 0.91),
    }
    rows = [
        {
            "study": "s", "seed": seed, "variant": variant, "accuracy": accuracy,
            "parameters": 100 if variant == "small" else 200, "seconds": 1.0 + seed,
            "compiled_seconds": 2.0 if variant == "big" else 1.0,
        }
        for variant, found in accuracies.items()
        for seed, accuracy in enumerate(found)
    ]  # fmt: skip
    written = io.StringIO()
    Console(width=200, file=written).print(growth.table(rows))
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in written.getvalue().splitlines()
    ]
    found = {row[0]: row[1:] for row in rows}
    # Student's t of four degrees of freedom: 2.776 × 1.581 / √5 = 1.96
    assert found["s: small"] == ["82.0 ± 2.0", "100 ± 0", "3.0 ± 2.0", "1.0 ± 0.0"]
    assert found["s: grown against small"] == [
        "+10.00 ± 0.00",
        "× 2.00 (2.00 to 2.00)",
        "× 1.00 (1.00 to 1.00)",
        "× 1.00 (1.00 to 1.00)",
    ]
    against_big = found["s: grown against big"]
    assert against_big[0] == "+1.00 ± 1.96"
    assert against_big[3] == "× 0.50 (0.50 to 0.50)"


def test_the_gpts_table_compares_with_the_large_network_of_the_same_seed(growth) -> None:
    report = importlib.import_module("growth_gpt_report")
    fields = ("flops", "seconds", "cpu_seconds", "bytes", "jump", "stall")

    def row(seed: int, plan: str, loss: float) -> dict[str, object]:
        return {"seed": seed, "plan": plan, "loss": loss, **dict.fromkeys(fields, 2.0)}

    rows = [row(1, "large", 4.0), row(0, "large", 2.0), row(0, "small", 3.0), row(1, "small", 6.0)]
    rows += [row(2, "small", 60.0)]  # there is no large network of this seed
    cells = [cell.strip() for cell in report.table(rows).splitlines()[-1].split("|")]
    # Student's t of two degrees of freedom: 4.303 × 32.08 / √3 = 79.69
    assert cells[1:4] == ["small", "23.0000 ± 79.6862", "1.500 (1.500 to 1.500)"]
    alone = [cell.strip() for cell in report.table(rows[-1:]).splitlines()[-1].split("|")]
    assert alone[3:8] == [""] * 5
