"""What the primitives of a jaxpr say about layers and activations."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import NamedTuple

from jax.extend.core import JaxprEqn, Literal, Var

__all__ = ["LEARNED_INPUT", "UNUSED", "Use", "activation_of", "dominant", "landmark", "use_of"]

LEARNED_INPUT = "learned_input"
UNUSED = "unused"

# Types of layers by what decides; of equals, the use that comes first.
_RANK = {
    "conv": 0,
    "depthwise_conv": 0,
    "transposed_conv": 0,
    "dense": 0,
    "embedding": 0,
    "normalization": 1,
    "scale": 2,
    "bias": 3,
    LEARNED_INPUT: 4,
    "other": 5,
}
_ELEMENTWISE = {"mul": "scale", "div": "scale", "add": "bias", "sub": "bias"}

# Activations that are one primitive, and those that JAX names as one jitted function.
_PRIMITIVES = {"tanh": "tanh", "logistic": "sigmoid", "erf": "gelu", "erfc": "gelu"}
_FUNCTIONS = frozenset(
    (
        *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "glu"),
        *("softplus", "squareplus", "sparse_plus", "sparse_sigmoid", "soft_sign", "log_sigmoid"),
        *("hard_tanh", "hard_sigmoid", "hard_silu", "log_softmax"),
    )
)


class Use(NamedTuple):
    """How an equation uses the weights of a layer.

    Attributes:
      type: type of the layer, as far as this use determines it.
      channels: inputs and outputs of one position; None where the use does not determine them.
    """

    type: str
    channels: tuple[int, int] | None = None

    @property
    def elementwise(self) -> bool:
        """Whether each number of the data meets its own weight."""
        return self.type in ("normalization", "scale", "bias")


def dominant(uses: list[Use]) -> Use:
    """The use that gives a layer its type: a kernel before a scale before a bias."""
    return min(uses, key=lambda use: _RANK[use.type])


def use_of(eqn: JaxprEqn, position: int, passed: Set[str]) -> Use:
    """How an equation that joins weights with data uses them.

    Args:
      eqn: the equation.
      position: which of its operands the weights are.
      passed: the landmarks that the operands have passed.
    """
    name, shape = eqn.primitive.name, _shape(eqn.invars[position])
    if name == "dot_general":
        contracted, batched = (dims[position] for dims in eqn.params["dimension_numbers"])
        used = {*contracted, *batched}
        inputs = math.prod(shape[axis] for axis in contracted)
        return Use("dense", (inputs, math.prod(n for i, n in enumerate(shape) if i not in used)))
    if name == "conv_general_dilated" and position == 1:
        return _convolution(eqn)
    if name in ("gather", "dynamic_slice") and position == 0:
        width = math.prod(eqn.params["slice_sizes"])
        return Use("embedding", (math.prod(shape) // width, width))
    if name in ("mul", "div") and "root" in passed:
        return Use("normalization")
    return Use(_ELEMENTWISE.get(name, "other"))


def _convolution(eqn: JaxprEqn) -> Use:
    out_axis, in_axis, *_ = eqn.params["dimension_numbers"].rhs_spec
    shape, groups = _shape(eqn.invars[1]), eqn.params["feature_group_count"]
    kind = "conv"
    if groups > 1 and shape[in_axis] == 1:
        kind = "depthwise_conv"
    elif any(dilation > 1 for dilation in eqn.params["lhs_dilation"]):
        kind = "transposed_conv"
    return Use(kind, (shape[in_axis] * groups, shape[out_axis]))


def landmark(eqn: JaxprEqn) -> str | None:
    """Name what a primitive indicates about the layer or activation that a value is part of.

    Roots indicate normalisation, exponentials softmax, cubes GELU, and squares that a maximum with
    zero keeps a variance from being negative.
    """
    name = eqn.primitive.name
    if name in ("rsqrt", "sqrt"):
        return "root" if _shape(eqn.outvars[0]) else None
    if name in ("exp", "exp2"):
        return "exp"
    if name == "integer_pow":
        return {2: "square", 3: "cube"}.get(eqn.params["y"])
    if name == "square" or (name == "mul" and eqn.invars[0] is eqn.invars[1]):
        return "square"
    return None


def activation_of(eqn: JaxprEqn, passed: list[Set[str]]) -> str | None:
    """The activation that an equation is, or completes; None for any other.

    Args:
      eqn: the equation.
      passed: the landmarks that each operand has passed.
    """
    name = eqn.primitive.name
    if name == "jit":
        return eqn.params["name"] if eqn.params["name"] in _FUNCTIONS else None
    if name == "tanh" and "cube" in passed[0]:
        return "gelu"  # Hendrycks & Gimpel 2016, the approximation of section 2
    if name == "div" and all("exp" in names for names in passed):
        return "softmax"
    if name == "max" and any(isinstance(v, Literal) and v.val == 0 for v in eqn.invars):
        return None if any("square" in names for names in passed) else "relu"
    return _PRIMITIVES.get(name)


def _shape(value: Var | Literal) -> tuple[int, ...]:
    return getattr(value.aval, "shape", ())  # a token has none
