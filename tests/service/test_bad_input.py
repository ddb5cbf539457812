"""Whatever a host sends, the answer is a lawful decision or an error that names what is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import make_blueprint, make_config, make_packet, make_seed, open_tamiyo

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import (
    ActivationSpec,
    Blueprint,
    HandlingClass,
    HardwareContext,
    HazardBand,
    LayerEdge,
    LayerSpec,
    MonitoredLayer,
    OptimizerAdjustment,
    ParameterSpec,
    Rollback,
    SafetySheet,
    SeedAdjustment,
    SeedStage,
    SystemStatePacket,
)
from tamiyo_jax.controller import TamiyoState, state_to_json
from tamiyo_jax.decision import Decision
from tamiyo_jax.errors import (
    GraphCapacityError,
    InvalidBlueprintError,
    NoSeedCandidatesError,
    TamiyoError,
)
from tamiyo_jax.journal import RecordType, read_journal
from tamiyo_jax.library import MemoryBlueprintLibrary
from tamiyo_jax.policy import ACTIONS, HeuristicPolicy, init_params
from tamiyo_jax.risk import RiskState
from tamiyo_jax.service import Tamiyo
from tamiyo_jax.storage import decode_step

EXAMPLES = 200
GROWABLE = tuple(f"grow-{index}" for index in range(9))
QUARANTINED = "quarantined"

# Everything that no field takes, and numbers at the edges of those that some take.
wrong = st.sampled_from(
    [
        *(None, True, "", "\ud800", "x" * 300, b"bytes", (), [], {}, [1], {"a": 1}, object()),
        *(-1, 0, 1, 2**32, 2**64, 10**400, -(10**400)),
        *(math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.5),
    ]
)
floats = st.none() | st.floats()
counts = st.none() | st.integers(0, 2**32 - 1)
ids = st.sampled_from(["s0", "s1", "é", "x" * 256]) | st.text(max_size=3)
metric_names = st.sampled_from(
    [
        *("loss", "loss_delta", "gradient_norm", "hook_latency_ms", "samples_per_s", "grad_var"),
        *("epochs_total", "alpha", "contribution", "blend_allowed", "validation_loss"),
        *("layer/L0/latency_ms", "layer/L9/latency_ms", "activation/A0/saturation_rate"),
        *("layer/L0", "seed/s0/gradient_norm", "///", "", "\ud800"),
    ]
)
metrics = st.dictionaries(metric_names, st.floats() | wrong, max_size=6)
many_metrics = st.just({f"m{index}": 0.0 for index in range(1025)})


@st.composite
def changed(
    draw: st.DrawFn,
    value: Any,
    legal: Mapping[str, st.SearchStrategy],
) -> Any:
    """`value` with up to three fields drawn anew, from what the field may hold or may not."""
    names = draw(st.lists(st.sampled_from(sorted(legal)), max_size=3, unique=True))
    return replace(value, **{name: draw(legal[name] | wrong) for name in names})


seeds = changed(
    make_seed(),
    {
        "seed_id": ids,
        "stage": st.sampled_from(SeedStage),
        "gradient_norm": floats,
        "learning_rate": floats,
        "risk_score": floats,
        "layer_depth": counts,
        "age_epochs": counts,
        "metrics": metrics | many_metrics,
    },
)
distinct_seeds = st.lists(st.sampled_from(SeedStage), min_size=1, max_size=18).map(
    lambda stages: tuple(make_seed(f"s{i}", stage) for i, stage in enumerate(stages))
)
hardware = changed(
    HardwareContext("cuda", "0", 24.0, 3.0, 60.0, 50.0, 90),
    {field.name: floats for field in fields(HardwareContext)},
)
blueprint_ids = st.sampled_from(["host"] * 9 + [*GROWABLE, QUARANTINED, "nowhere"])
packets = changed(
    make_packet(
        9,
        candidate_blueprint_ids=("grow-0", QUARANTINED, "grow-1"),
        seeds=tuple(make_seed(f"s{int(stage)}", stage) for stage in list(SeedStage)[1:]),
        restorable_checkpoint="step-5",
    ),
    {
        "packet_id": ids,
        "training_run_id": ids,
        "blueprint_id": blueprint_ids,
        "candidate_blueprint_ids": st.lists(blueprint_ids, max_size=9).map(tuple),
        "current_epoch": counts,
        "global_step": st.integers(0, 2**64 - 1),
        "validation_loss": floats,
        "validation_accuracy": floats,
        "training_loss": floats,
        "training_metrics": metrics | many_metrics,
        "seeds": distinct_seeds | st.lists(seeds | wrong, max_size=4).map(tuple),
        "optimizer_id": ids,
        "restorable_checkpoint": ids,
        "hardware": hardware,
        "source_subsystem": ids,
        "experiment_name": ids,
        "timestamp_ns": st.integers(0, 2**64 - 1),
    },
)

layers = changed(
    LayerSpec("L0", "dense", 0, "relu", 1.0, 100, 0.1, 1.0, 1.0, 8, 8),
    {
        "layer_id": ids,
        "type": ids,
        "activation": ids,
        "depth": counts,
        **dict.fromkeys(("parameter_count", "input_channels", "output_channels"), counts),
        **dict.fromkeys(("latency_ms", "dropout_rate", "weight_norm", "gradient_norm"), floats),
    },
)
activations = changed(
    ActivationSpec("A0", "relu", 0.1, 0.5, 10.0, 1.0),
    {"activation_id": ids, "type": ids, "computational_cost": floats, "gradient_flow": floats},
)
parameters = changed(
    ParameterSpec("lr", 0.0, 1.0),
    {"name": ids, "min": floats, "max": floats, "span": floats, "default": floats},
)
indices = st.integers(-1, 4)
edges = changed(LayerEdge(0, 0), {"source": indices, "target": indices, "strength": floats})
watches = changed(
    MonitoredLayer("s0", 0),
    {"seed_id": ids, "layer_index": indices, "weight": floats},
)
relations = st.sampled_from(
    ["layer__feeds__activation", "seed__peer__seed", "no__such__relation", "nonsense", ""]
)
sheets = changed(
    SafetySheet(0.5, HazardBand.LOW, HandlingClass.STANDARD),
    {
        "risk_score": st.floats(0, 1),
        "handling_class": st.sampled_from(HandlingClass),
        "hazard_band": st.sampled_from(HazardBand),
    },
)


def tuples(of: st.SearchStrategy, most: int = 3) -> st.SearchStrategy:
    """Mostly what belongs there, and not always as many as fit."""
    return st.lists(of, max_size=most).map(tuple)


blueprints = changed(
    make_blueprint("host"),
    {
        "blueprint_id": ids,
        "risk": floats,
        "stage": st.integers(-1, 10),
        "candidate_score": floats,
        "quarantine_only": st.booleans(),
        "approved": st.booleans(),
        "allowed_parameters": st.dictionaries(ids, st.tuples(floats, floats), max_size=2),
        "layers": tuples(layers),
        "activations": tuples(activations),
        "parameters": tuples(parameters),
        "layer_edges": st.none() | tuples(edges),
        "chain": st.booleans(),
        "monitored_layers": tuples(watches),
        "monitor_thresholds": st.dictionaries(
            st.sampled_from(["risk_max", "stage_min", "other"]),
            st.floats() | wrong,
            max_size=2,
        ),
        "relation_pairs": st.dictionaries(
            relations, tuples(st.tuples(indices, indices)), max_size=2
        ),
        "allowed_blending_methods": tuples(ids),
        "allowed_parameters_by_seed_id": st.dictionaries(ids, tuples(ids), max_size=2),
        "optimizer_family": ids,
        "hazard_class": ids,
        "safety": st.none() | sheets,
    },
)


class Dice:
    """A policy that picks among the legal at random, so that every action is tried."""

    cast = 0

    def __init__(self, config: TamiyoConfig) -> None:
        self._rules = HeuristicPolicy(config.heuristic, config.policy)

    def initial_state(self):
        return self._rules.initial_state()

    def decide(self, params, policy_state, observation):
        state, outputs = self._rules.decide(params, policy_state, observation)
        random = np.random.default_rng(Dice.cast)

        def some(shape: int) -> np.ndarray:
            return random.normal(size=shape).astype(np.float32)

        return state, outputs._replace(
            policy_logits=some(outputs.policy_logits.size),
            param_delta=np.float32(random.uniform(-1, 1)),
            seed_scores=np.where(
                np.isfinite(outputs.seed_scores), some(outputs.seed_scores.size), -np.inf
            ).astype(np.float32),
        )


def make_full_library() -> MemoryBlueprintLibrary:
    library = MemoryBlueprintLibrary()
    for name in ("host", *GROWABLE):
        library.put(make_blueprint(name))
    library.put(make_blueprint(QUARANTINED, quarantine_only=True))
    return library


def what_a_failure_may_not_change(state: TamiyoState) -> str:
    """The state's text without the failure count, the breakers and conservative mode."""
    still = RiskState()
    risk = replace(
        state.risk,
        conservative=still.conservative,
        inference=still.inference,
        metadata=still.metadata,
    )
    return state_to_json(replace(state, failures=0, risk=risk))


def assert_names_what_is_wrong(error: TamiyoError) -> None:
    if isinstance(error, NoSeedCandidatesError):
        assert "seeds" in str(error)
        return
    named = [
        error.context[key] for key in ("field", "name", "blueprint_id") if key in error.context
    ]
    named += list(error.context.get("features", ()))
    assert named, f"{type(error).__name__} names nothing: {error}"
    assert all(str(name) in str(error) or repr(name) in str(error) for name in named)


def assert_lawful(
    decision: Decision, packet: SystemStatePacket, library: MemoryBlueprintLibrary
) -> None:
    command = decision.command
    numbers = [decision.value, decision.risk_score, *decision.coverage.values()]
    match None if command is None else command.payload:
        case SeedAdjustment(operation, blueprint_id, parameters):
            (seed,) = [seed for seed in packet.seeds if seed.seed_id == command.target_seed_id]
            rules = [rule for action, rule in ACTIONS.items() if action.name == decision.action]
            assert [rule.operations[seed.stage] for rule in rules] == [operation]
            if rules[0].needs_blueprint:
                assert blueprint_id in packet.candidates
                assert library.get(blueprint_id).selectable
            else:
                assert blueprint_id is None
            numbers += parameters.values()
        case OptimizerAdjustment(optimizer_id, hyperparameters):
            assert optimizer_id == packet.optimizer_id is not None
            numbers += hyperparameters.values()
        case Rollback(checkpoint):
            assert checkpoint == packet.restorable_checkpoint is not None
    assert all(math.isfinite(number) for number in numbers), numbers


def assert_answered(
    tamiyo: Tamiyo, packet: SystemStatePacket, library: MemoryBlueprintLibrary
) -> None:
    """The property: a lawful decision, or an error that names the field and changes nothing."""
    before = tamiyo.state
    try:
        decision = tamiyo.step(packet)
    except TamiyoError as error:
        assert_names_what_is_wrong(error)
        assert what_a_failure_may_not_change(tamiyo.state) == what_a_failure_may_not_change(before)
        assert tamiyo.state.failures == before.failures + 1
    else:
        assert_lawful(decision, packet, library)
        assert tamiyo.state.steps == before.steps + 1


def stalled(tamiyo: Tamiyo) -> TamiyoState:
    """A state in which the rules want to germinate, and in which a loss is known."""
    for step in range(9):
        tamiyo.step(make_packet(step, seeds=(make_seed(),), candidate_blueprint_ids=("grow-0",)))
    return tamiyo.state


def assert_on_record(directory: Path, final: str, **arguments: Any) -> None:
    """All steps, failed ones too, can be read back, with finite metrics; nothing is lost."""
    for record in read_journal(directory).records:
        if record.type is RecordType.STEP:
            report = decode_step(record.payload).report
            assert all(math.isfinite(value) for value in report.metrics.values()), report
    with open_tamiyo(directory, **arguments) as tamiyo:
        assert state_to_json(tamiyo.state) == final


def hold_for_packets(directory: Path, examples: int, **arguments: Any) -> None:
    library = make_full_library()
    with open_tamiyo(directory, library=library, **arguments) as tamiyo:
        start = stalled(tamiyo)

        @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
        @given(packet=packets, cast=st.integers(0, 2**32 - 1))
        def check(packet: SystemStatePacket, cast: int) -> None:
            Dice.cast = cast
            tamiyo.restore(start)
            assert_answered(tamiyo, packet, library)

        check()
        final = state_to_json(tamiyo.state)
    assert_on_record(directory, final, library=library, **arguments)


@pytest.mark.parametrize("policy", ["heuristic", f"{__name__}:Dice"])
def test_any_packet_gets_a_lawful_decision_or_an_error_that_names_the_field(
    tmp_path: Path, policy: str
) -> None:
    hold_for_packets(tmp_path, EXAMPLES, policy=policy)


def test_any_packet_is_answered_by_the_graph_policy_alike(tmp_path: Path) -> None:
    config = make_config()
    params = init_params(config.policy, jax.random.key(0))
    kernel = params["policy_logits"]["kernel"]
    trained = jax.random.normal(jax.random.key(1), kernel.shape)  # untrained ones are all zero
    head = {**params["policy_logits"], "kernel": trained}
    params = {**params, "policy_logits": head}
    hold_for_packets(tmp_path, EXAMPLES // 8, config=config, policy="graph", params=params)


def test_any_blueprint_is_refused_by_name_or_used_in_a_decision(tmp_path: Path) -> None:
    library = make_full_library()
    with open_tamiyo(tmp_path, library=library, policy=f"{__name__}:Dice") as tamiyo:
        start = stalled(tamiyo)

        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
        @given(blueprint=blueprints, cast=st.integers(0, 2**32 - 1))
        def check(blueprint: Blueprint, cast: int) -> None:
            Dice.cast = cast
            tamiyo.restore(start)
            revision = library.revision()
            try:
                library.put(blueprint)
            except (InvalidBlueprintError, GraphCapacityError) as error:
                assert_names_what_is_wrong(error)
                assert library.revision() == revision
            else:
                name = blueprint.blueprint_id
                active = make_packet(9, blueprint_id=name, candidate_blueprint_ids=("grow-0",))
                assert_answered(tamiyo, active, library)
                growing = make_packet(9, candidate_blueprint_ids=(name,))
                assert_answered(tamiyo, growing, library)

        check()
        final = state_to_json(tamiyo.state)
    assert_on_record(tmp_path, final, library=library, policy=f"{__name__}:Dice")


@pytest.mark.parametrize("packet", [None, "packet", {}, make_blueprint()])
def test_what_is_no_packet_at_all_is_refused_and_on_record(tmp_path: Path, packet: object) -> None:
    library = make_full_library()
    with open_tamiyo(tmp_path, library=library) as tamiyo:
        assert_answered(tamiyo, packet, library)
        assert tamiyo.state.failures == 1


@pytest.mark.parametrize(
    "fields_of_a_blueprint",
    [
        {"layers": None},
        {"layers": (None,)},
        {"parameters": 1.5},
        {"safety": 0.5},
        {"allowed_parameters": ()},
        {"monitored_layers": ("s0",)},
        {"quarantine_only": "no"},
        {"candidate_score": 10**400},
        {"stage": 10**5000},
    ],
)
def test_a_blueprint_with_parts_of_the_wrong_kind_is_refused_by_name(
    fields_of_a_blueprint: dict[str, Any],
) -> None:
    library = make_full_library()
    with pytest.raises((InvalidBlueprintError, GraphCapacityError)) as raised:
        library.put(make_blueprint("host", **fields_of_a_blueprint))
    assert_names_what_is_wrong(raised.value)
