"""Make the blueprint of a model.

The model is traced, never run. The parameters give the layers and their sizes; the
jaxpr of the forward pass gives their types and how they connect (`_tracing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

from tamiyo_jax.contracts import ActivationSpec, Blueprint, LayerEdge, LayerSpec
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.host._naming import leaf_layers
from tamiyo_jax.host._primitives import LEARNED_INPUT, UNUSED, Use, dominant
from tamiyo_jax.host._tracing import Trace, trace

__all__ = ["blueprint_of"]

IDENTITY = "identity"


class _Layer(NamedTuple):
    """A layer of the parameter tree: its name, and the shapes of its arrays."""

    name: str
    shapes: tuple[tuple[int, ...], ...]


def blueprint_of(
    params: Any,  # noqa: ANN401
    apply_fn: Callable[[Any, Any], Any],
    example: Any,  # noqa: ANN401
    *,
    blueprint_id: str,
    risk: float,
) -> Blueprint:
    """Describe a model by its parameters and its forward pass.

    Layers stand in the order in which the forward pass first applies them, under the names
    that `monitor` gives them. An edge says that the output of one layer reaches the input of
    another through no layer in between. `depth` counts the layers on the longest way to a
    layer, from the example. `activation` is the first activation that a layer's output meets,
    ``identity`` if it meets none. Parameters that the forward pass does not reach make layers
    of type ``unused``, without edges, at the end.

    What a model does not hold (tier, stage, bounds, blending methods, safety sheet) keeps the
    default of `Blueprint`; set it with ``dataclasses.replace``.

    Args:
      params: the parameter pytree: of Linen ``variables["params"]``, of NNX the state
        ``nnx.split(model, nnx.Param, ...)[1]``, of Equinox the first part of
        ``eqx.partition(model, eqx.is_inexact_array)``. Shapes and dtypes are enough
        (``jax.eval_shape``).
      apply_fn: the forward pass, ``apply_fn(params, example)``; pure, as for ``jax.jit``.
      example: a pytree of inputs; shapes and dtypes are enough.
      blueprint_id: identity of the blueprint.
      risk: of the blueprint, in [0, 1].

    Raises:
      ConfigurationError: `params` is empty, or holds something that is no array.
    """
    layers, owners = _layers_of(params)
    found = trace(jax.make_jaxpr(apply_fn)(params, example), owners)
    order = [*found.depth, *(layer for layer in range(len(layers)) if layer not in found.depth)]
    index = {layer: position for position, layer in enumerate(order)}
    functions = _functions(found)
    activations = _activations(found, index, layers)
    return Blueprint(
        blueprint_id=blueprint_id,
        risk=risk,
        layers=tuple(
            _spec(layers[layer], found, layer, functions.get(layer, IDENTITY)) for layer in order
        ),
        activations=activations,
        layer_edges=tuple(
            LayerEdge(*edge)
            for edge in sorted((index[source], index[target]) for source, target in found.edges)
        ),
        relation_pairs=_relation_pairs(found, index),
    )


def _layers_of(params: Any) -> tuple[list[_Layer], list[int]]:  # noqa: ANN401
    """The layers of a tree, and the layer of each of its arrays."""
    names = leaf_layers(params)
    if not names:
        raise ConfigurationError(
            "params holds no array; give blueprint_of the model's parameter pytree"
        )
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}
    for name, leaf in zip(names, jax.tree.leaves(params), strict=True):
        if not hasattr(leaf, "shape"):
            raise ConfigurationError(
                f"params holds a {type(leaf).__name__} in {name!r}, which is no array; pass the "
                "arrays alone, for instance the first part of eqx.partition(model, "
                "eqx.is_inexact_array)",
                layer=name,
            )
        shapes[name].append(tuple(leaf.shape))
    number = {name: position for position, name in enumerate(shapes)}
    layers = [_Layer(name, tuple(sizes)) for name, sizes in shapes.items()]
    return layers, [number[name] for name in names]


def _functions(found: Trace) -> dict[int, str]:
    """The first activation that each layer's output meets."""
    functions: dict[int, str] = {}
    for activation in found.activations.values():
        for layer in activation.layers:
            functions.setdefault(layer, activation.type)
    return functions


def _spec(layer: _Layer, found: Trace, number: int, activation: str) -> LayerSpec:
    uses = found.uses.get(number)
    use = dominant(uses) if uses else Use(UNUSED)
    inputs, outputs = _channels(layer, use)
    return LayerSpec(
        layer_id=layer.name,
        type=use.type,
        depth=found.depth.get(number, 0),
        activation=activation,
        parameter_count=sum(math.prod(shape) for shape in layer.shapes),
        input_channels=inputs,
        output_channels=outputs,
    )


def _channels(layer: _Layer, use: Use) -> tuple[int | None, int | None]:
    """Inputs and outputs of a layer; by its last axis where its use does not give them."""
    if use.channels is not None:
        return use.channels
    last = max((shape[-1] for shape in layer.shapes if shape), default=1)
    if use.elementwise:
        return last, last
    return None, last if use.type == LEARNED_INPUT else None


def _activations(
    found: Trace, index: dict[int, int], layers: Sequence[_Layer]
) -> tuple[ActivationSpec, ...]:
    """Activations, named after the last of the layers whose outputs they take."""
    seen: dict[str, int] = {}
    specs: list[ActivationSpec] = []
    for activation in found.activations.values():
        last = max(activation.layers, key=index.__getitem__, default=None)
        name = activation.type if last is None else f"{layers[last].name}/{activation.type}"
        seen[name] = seen.get(name, 0) + 1
        unique = name if seen[name] == 1 else f"{name}-{seen[name]}"
        specs.append(ActivationSpec(unique, activation.type))
    return tuple(specs)


def _relation_pairs(found: Trace, index: dict[int, int]) -> dict[str, tuple[tuple[int, int], ...]]:
    """Which layer's output an activation takes, and which layer takes the activation's."""
    if not found.activations:
        return {}
    position = {place: i for i, place in enumerate(found.activations)}
    takes = _sort_pairs(
        (index[layer], position[place])
        for place, activation in found.activations.items()
        for layer in activation.layers
    )
    gives = _sort_pairs((position[place], index[layer]) for place, layer in found.readers)
    return {
        "layer__activates__activation": takes,
        "activation__affects__layer": gives,
        "layer__feeds__activation": takes,
    }


def _sort_pairs(pairs: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted(set(pairs)))
