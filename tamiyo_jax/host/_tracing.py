"""Following values through a jaxpr: which layers they come from, and where they go.

Every value of the forward pass has an origin. Values made of parameters alone are *weights* of
their layers. Where weights meet data, the layer is applied: the result comes from that layer,
and every layer that the data came from feeds it. Data that meets data comes from both sides.

    x = dense_0(x)                    dense_0
    x = x + dense_1(gelu(x))          dense_0, dense_1        an edge dense_0 → dense_1
    y = norm(x)                       norm                    edges from dense_0 and dense_1

So an edge says that the output of one layer reaches the input of another through no layer in
between, which holds for residual sums, concatenations and attention alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from tamiyo_jax.host._primitives import LEARNED_INPUT, Use, activation_of, landmark, use_of

__all__ = ["Activation", "Flow", "Place", "Trace", "trace"]

Place = tuple[int, ...]
"""Where an equation stands: its index, behind those of the equations around it."""

Layers = frozenset[int]
NO_LAYERS: Layers = frozenset()


class Flow(NamedTuple):
    """The origin of a value.

    Attributes:
      data: whether it depends on the example.
      layers: of data, the layers that it comes from; else, those whose weights it is made of.
      depth: layers on the longest way from the example to it.
      fed: the layers that feed the elementwise layer that the value is the output of.
      activations: the activations that it has passed last since then.
      passed: the landmarks that it has passed since then.
    """

    data: bool = False
    layers: Layers = NO_LAYERS
    depth: int = 0
    fed: Layers = NO_LAYERS
    activations: frozenset[Place] = frozenset()
    passed: frozenset[str] = frozenset()

    @property
    def weights(self) -> bool:
        """Whether it is made of parameters alone."""
        return bool(self.layers) and not self.data


class Activation(NamedTuple):
    """An activation, and the layers whose outputs it takes."""

    type: str
    layers: Layers


@dataclass(frozen=True, slots=True)
class Trace:
    """The layers of a forward pass, by number: their types and how they connect.

    Attributes:
      depth: layers on the longest way to a layer, in the order in which they are first applied.
      uses: how each layer's weights are used, in order.
      edges: (from, to).
      activations: by place, in order.
      readers: (activation, layer that takes its output).
    """

    depth: dict[int, int] = field(default_factory=dict[int, int])
    uses: dict[int, list[Use]] = field(default_factory=dict[int, list[Use]])
    edges: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    activations: dict[Place, Activation] = field(default_factory=dict[Place, Activation])
    readers: set[tuple[Place, int]] = field(default_factory=set[tuple[Place, int]])

    def apply(self, layer: int, use: Use, data: Flow) -> None:
        """A layer takes `data`; what it takes from itself is no edge."""
        self.depth.setdefault(layer, data.depth)
        self.uses.setdefault(layer, []).append(use)
        self.edges.update((source, layer) for source in data.layers - {layer})
        self.readers.update((place, layer) for place in data.activations)


def trace(closed: ClosedJaxpr, layers: Sequence[int]) -> Trace:
    """Follow a forward pass.

    Args:
      closed: its jaxpr; the first ``len(layers)`` inputs are parameters, the others are data.
      layers: the layer of each parameter.
    """
    walk = _Walk(Trace())
    weights = [Flow(layers=frozenset((layer,))) for layer in layers]
    data = [Flow(data=True) for _ in closed.jaxpr.invars[len(layers) :]]
    for flow in walk.jaxpr(closed, [*weights, *data], ()):
        walk.emit(flow)
    return walk.trace


class _Walk:
    """A walk through a jaxpr that writes into a trace."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def jaxpr(self, body: ClosedJaxpr | Jaxpr, inputs: list[Flow], place: Place) -> list[Flow]:
        """Origins of the outputs, from those of the inputs."""
        jaxpr = body.jaxpr if isinstance(body, ClosedJaxpr) else body
        known: dict[Var, Flow] = dict(zip(jaxpr.invars, inputs, strict=True))

        def origin(value: Var | Literal) -> Flow:
            # What is not known is a constant.
            return Flow() if isinstance(value, Literal) else known.get(value, Flow())

        for index, eqn in enumerate(jaxpr.eqns):
            flows = [origin(value) for value in eqn.invars]
            outputs = self.equation(eqn, flows, (*place, index))
            known.update(zip(eqn.outvars, outputs, strict=True))
        return [origin(value) for value in jaxpr.outvars]

    def equation(self, eqn: JaxprEqn, flows: list[Flow], place: Place) -> list[Flow]:
        """Origins of an equation's outputs."""
        control = _CONTROL.get(eqn.primitive.name)
        if control is not None:
            return control(self, eqn, flows, place)
        function = self.function(eqn, flows, place)
        if function is not None:
            return [function] * len(eqn.outvars)
        body = _body(eqn)
        if body is not None:
            return self.jaxpr(body, flows, place)
        return [self.combine(eqn, flows)] * len(eqn.outvars)

    def function(self, eqn: JaxprEqn, flows: list[Flow], place: Place) -> Flow | None:
        """The output of an activation, or None if the equation is none."""
        if any(flow.weights for flow in flows) or not any(flow.data for flow in flows):
            return None
        kind = activation_of(eqn, [flow.passed for flow in flows])
        if kind is None:
            return None
        merged = self.join(flows)
        self.trace.activations[place] = Activation(kind, merged.layers)
        return merged._replace(activations=frozenset((place,)), passed=frozenset())

    def combine(self, eqn: JaxprEqn, flows: list[Flow]) -> Flow:
        """The output of an equation that has no jaxpr inside."""
        name = eqn.primitive.name
        weights = [flow for flow in flows if flow.weights]
        data = [flow for flow in flows if flow.data]
        if weights and data and name != "concatenate":
            return self.apply(eqn, flows)
        if len(data) == 2 and name in ("mul", "div"):
            for flow, other in (data, data[::-1]):
                if flow.fed and other.layers <= flow.fed:
                    return flow  # a normalisation's factor meets what it was computed from
        merged, mark = self.join(flows), landmark(eqn)
        if mark is None or not (merged.data or mark == "root"):
            return merged
        return merged._replace(passed=merged.passed | {mark})

    def apply(self, eqn: JaxprEqn, flows: list[Flow]) -> Flow:
        """Weights meet data: the layers of the weights are applied to it."""
        data = self.join([flow for flow in flows if flow.data])
        passed = frozenset[str]().union(*(flow.passed for flow in flows))
        owners = NO_LAYERS.union(*(flow.layers for flow in flows if flow.weights))
        taken = data._replace(layers=data.layers - owners)
        fed = taken.layers if data.layers != owners else data.fed
        for position, flow in enumerate(flows):
            if flow.weights:
                use = use_of(eqn, position, passed)
                fed = fed if use.elementwise else NO_LAYERS
                for layer in sorted(flow.layers):
                    self.trace.apply(layer, use, taken)
        return self.output(owners, fed)

    def join(self, flows: Sequence[Flow]) -> Flow:
        """The origin of a value made of others; weights count as data beside data."""
        data = any(flow.data for flow in flows)
        if data:
            flows = [self.emit(flow) for flow in flows]
        layers = NO_LAYERS.union(*(flow.layers for flow in flows))
        return Flow(
            data=data,
            layers=layers,
            depth=max(flow.depth for flow in flows) if flows else 0,
            fed=NO_LAYERS.union(*(flow.fed for flow in flows if flow.layers == layers)),
            activations=frozenset[Place]().union(*(flow.activations for flow in flows)),
            passed=frozenset[str]().union(*(flow.passed for flow in flows)),
        )

    def emit(self, flow: Flow) -> Flow:
        """Weights that become data as they are: a layer that nothing feeds."""
        if not flow.weights:
            return flow
        for layer in sorted(flow.layers):
            self.trace.apply(layer, Use(LEARNED_INPUT), Flow())
        return self.output(flow.layers)

    def output(self, owners: Layers, fed: Layers = NO_LAYERS) -> Flow:
        """The output of layers that have just been applied."""
        depth = 1 + max(self.trace.depth[layer] for layer in owners)
        return Flow(data=True, layers=owners, depth=depth, fed=fed)

    def scan(self, eqn: JaxprEqn, flows: list[Flow], place: Place) -> list[Flow]:
        """One pass through the body, from what the carried values are in the long run."""
        body, consts = eqn.params["jaxpr"], eqn.params["num_consts"]
        first = consts + eqn.params["num_carry"]

        def step(walk: _Walk, carry: list[Flow]) -> list[Flow]:
            return walk.jaxpr(body, [*flows[:consts], *carry, *flows[first:]], place)

        return step(self, self.settle(step, flows[consts:first]))

    def while_loop(self, eqn: JaxprEqn, flows: list[Flow], place: Place) -> list[Flow]:
        """Like a scan; what ends the loop is no value of the network."""
        skipped = eqn.params["cond_nconsts"]
        first = skipped + eqn.params["body_nconsts"]

        def step(walk: _Walk, carry: list[Flow]) -> list[Flow]:
            return walk.jaxpr(eqn.params["body_jaxpr"], [*flows[skipped:first], *carry], place)

        return step(self, self.settle(step, flows[first:]))

    def cond(self, eqn: JaxprEqn, flows: list[Flow], place: Place) -> list[Flow]:
        """All branches are followed; what chooses one is no value of the network."""
        outputs = [
            self.jaxpr(branch, flows[1:], (*place, index))
            for index, branch in enumerate(eqn.params["branches"])
        ]
        return [self.join(values) for values in zip(*outputs, strict=True)]

    def settle(
        self, step: Callable[[_Walk, list[Flow]], list[Flow]], initial: list[Flow]
    ) -> list[Flow]:
        """What the carried values of a loop are before any of its passes.

        What a pass makes of them joins them until nothing is new, without leaving a trace:
        a value that starts as zeros is data only after the first pass. Depth is that of the
        first pass. Origins only grow, so this ends.
        """
        carry = initial
        while True:
            walk = _Walk(Trace())
            after = step(walk, carry)[: len(carry)]
            joined = [
                walk.join((before, following))._replace(depth=before.depth)
                for before, following in zip(carry, after, strict=True)
            ]
            if joined == carry:
                return [self.join(pair) for pair in zip(initial, carry, strict=True)]
            carry = joined


_CONTROL = {"scan": _Walk.scan, "while": _Walk.while_loop, "cond": _Walk.cond}


def _body(eqn: JaxprEqn) -> ClosedJaxpr | Jaxpr | None:
    """The jaxpr that an equation calls with its own operands, if it calls one."""
    for value in eqn.params.values():
        if isinstance(value, ClosedJaxpr | Jaxpr):
            jaxpr = value.jaxpr if isinstance(value, ClosedJaxpr) else value
            arity = len(jaxpr.invars), len(jaxpr.outvars)
            if arity == (len(eqn.invars), len(eqn.outvars)):
                return jaxpr
    return None
