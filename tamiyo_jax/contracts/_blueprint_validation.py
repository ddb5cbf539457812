"""Validation of a blueprint before a library or the cache accepts it."""

from __future__ import annotations

from collections.abc import Sequence

from tamiyo_jax.contracts._blueprint import ActivationSpec, Blueprint, LayerSpec, ParameterSpec
from tamiyo_jax.contracts._checks import Checks
from tamiyo_jax.errors import GraphCapacityError, InvalidBlueprintError

__all__ = ["validate_blueprint"]

MAX_STAGE = 9
MAX_COUNT = 2**63 - 1
MONITOR_THRESHOLDS = ("risk_max", "stage_min")

_check = Checks(InvalidBlueprintError)


def validate_blueprint(
    blueprint: Blueprint,
    *,
    max_layers: int,
    max_activations: int,
    max_parameters: int,
    max_edges: int,
) -> None:
    """Check a blueprint against its contract and the caps.

    The graph's schema checks whether the keys of `relation_pairs` name relations, and the
    encoder reports a missing risk.

    Args:
      blueprint: the blueprint to check.
      max_layers: largest number of layers.
      max_activations: largest number of activations.
      max_parameters: largest number of parameters.
      max_edges: largest number of edges of a relation.

    Raises:
      InvalidBlueprintError: a field breaks the contract; the error names field and value.
      GraphCapacityError: more nodes or edges than the caps.
    """
    _check.instance("blueprint", blueprint, Blueprint)
    _check.kind("", blueprint, Blueprint)
    _check_capacity("layers", len(blueprint.layers), max_layers)
    _check_capacity("activations", len(blueprint.activations), max_activations)
    _check_capacity("parameters", len(blueprint.parameters), max_parameters)
    _check_capacity("layer_edges", _layer_edge_count(blueprint), max_edges)
    _check_capacity("monitored_layers", len(blueprint.monitored_layers), max_edges)
    for key, pairs in blueprint.relation_pairs.items():
        _check_capacity(f"relation_pairs[{key!r}]", len(pairs), max_edges)
    _check.all_finite(blueprint)
    _check_identity(blueprint)
    _check_layers(blueprint.layers)
    _check_activations(blueprint.activations)
    _check_parameters(blueprint.parameters)
    _check_connections(blueprint)
    _check_monitors(blueprint)
    _check_relation_pairs(blueprint)
    _check_permissions(blueprint)


def _check_capacity(name: str, count: int, cap: int) -> None:
    if count > cap:
        raise GraphCapacityError(
            f"{name} has {count} entries and the cap is {cap}; raise the cap in the "
            "configuration's section graph, or describe the network more coarsely",
            name=name,
            count=count,
            cap=cap,
        )


def _layer_edge_count(blueprint: Blueprint) -> int:
    if blueprint.layer_edges is not None:
        return len(blueprint.layer_edges)
    return max(len(blueprint.layers) - 1, 0) if blueprint.chain else 0


def _check_identity(blueprint: Blueprint) -> None:
    _check.identifier("blueprint_id", blueprint.blueprint_id)
    _check.whole("revision", blueprint.revision, MAX_COUNT)
    _check.whole("stage", blueprint.stage, MAX_STAGE)
    _check.label("optimizer_family", blueprint.optimizer_family)
    _check.label("hazard_class", blueprint.hazard_class)
    if blueprint.risk is not None:
        _check.ratio("risk", blueprint.risk)
    if blueprint.safety is not None:
        _check.ratio("safety.risk_score", blueprint.safety.risk_score)


def _check_layers(layers: Sequence[LayerSpec]) -> None:
    for index, layer in enumerate(layers):
        where = f"layers[{index}]"
        _check.identifier(f"{where}.layer_id", layer.layer_id)
        _check.label(f"{where}.type", layer.type)
        _check.label(f"{where}.activation", layer.activation)
        _check.whole(f"{where}.depth", layer.depth, MAX_COUNT)
        for name in ("parameter_count", "input_channels", "output_channels"):
            if getattr(layer, name) is not None:
                _check.whole(f"{where}.{name}", getattr(layer, name), MAX_COUNT)
    _check.unique("layers", [layer.layer_id for layer in layers])


def _check_activations(activations: Sequence[ActivationSpec]) -> None:
    for index, activation in enumerate(activations):
        where = f"activations[{index}]"
        _check.identifier(f"{where}.activation_id", activation.activation_id)
        _check.label(f"{where}.type", activation.type)
        cost = activation.computational_cost
        if cost is not None and cost < 0:
            raise _check.failure(f"{where}.computational_cost", cost, "a cost is at least 0")
    _check.unique("activations", [activation.activation_id for activation in activations])


def _check_parameters(parameters: Sequence[ParameterSpec]) -> None:
    for index, parameter in enumerate(parameters):
        where = f"parameters[{index}]"
        _check.identifier(f"{where}.name", parameter.name)
        _check_bounds(where, parameter.min, parameter.max)
    _check.unique("parameters", [parameter.name for parameter in parameters])


def _check_bounds(where: str, low: float, high: float) -> None:
    if low > high:
        raise _check.failure(where, (low, high), "the minimum may not exceed the maximum")


def _check_index(where: str, index: int, count: int, of: str) -> None:
    if not 0 <= index < count:
        raise _check.failure(where, index, f"give the index of one of the {count} {of}")


def _check_connections(blueprint: Blueprint) -> None:
    count = len(blueprint.layers)
    if blueprint.chain and blueprint.layer_edges is not None:
        raise _check.failure("chain", True, "give either layer_edges or chain, not both")
    if count > 1 and not blueprint.chain and blueprint.layer_edges is None:
        raise _check.failure(
            "layer_edges",
            None,
            f"say how the {count} layers connect: list layer_edges, or set chain=True",
        )
    for index, edge in enumerate(blueprint.layer_edges or ()):
        where = f"layer_edges[{index}]"
        _check_index(f"{where}.source", edge.source, count, "layers")
        _check_index(f"{where}.target", edge.target, count, "layers")


def _check_monitors(blueprint: Blueprint) -> None:
    for index, monitored in enumerate(blueprint.monitored_layers):
        where = f"monitored_layers[{index}]"
        _check.identifier(f"{where}.seed_id", monitored.seed_id)
        count = len(blueprint.layers)
        _check_index(f"{where}.layer_index", monitored.layer_index, count, "layers")
    for name in blueprint.monitor_thresholds:
        if name not in MONITOR_THRESHOLDS:
            known = " and ".join(MONITOR_THRESHOLDS)
            raise _check.failure("monitor_thresholds", name, f"the thresholds are {known}")


def _check_relation_pairs(blueprint: Blueprint) -> None:
    counts = {
        "layer": len(blueprint.layers),
        "activation": len(blueprint.activations),
        "parameter": len(blueprint.parameters),
    }
    for key, pairs in blueprint.relation_pairs.items():
        ends = key.split("__")
        if len(ends) != 3:
            raise _check.failure("relation_pairs", key, "a key is source__relation__target")
        for index, pair in enumerate(pairs):
            where = f"relation_pairs[{key!r}][{index}]"
            for kind, end in zip((ends[0], ends[2]), pair, strict=True):
                if kind in counts:
                    _check_index(where, end, counts[kind], f"{kind}s")
                else:
                    _check.whole(where, end, MAX_COUNT)


def _check_permissions(blueprint: Blueprint) -> None:
    for name, (low, high) in blueprint.allowed_parameters.items():
        _check.identifier("allowed_parameters", name)
        _check_bounds(f"allowed_parameters[{name!r}]", low, high)
    for index, method in enumerate(blueprint.allowed_blending_methods):
        _check.identifier(f"allowed_blending_methods[{index}]", method)
    known = {parameter.name for parameter in blueprint.parameters}
    for seed_id, names in blueprint.allowed_parameters_by_seed_id.items():
        _check.identifier("allowed_parameters_by_seed_id", seed_id)
        for name in names:
            if name not in known:
                raise _check.failure(
                    f"allowed_parameters_by_seed_id[{seed_id!r}]",
                    name,
                    "an allow-list names parameters of the blueprint",
                )
