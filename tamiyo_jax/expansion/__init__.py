"""A larger network for the same function, in the middle of training and without a stall."""

from tamiyo_jax.expansion._ahead import CompileAhead, compile_program
from tamiyo_jax.expansion._depth import deepen
from tamiyo_jax.expansion._optimizer import WarmUpState, grow_opt_state, warm_up_new
from tamiyo_jax.expansion._plan import Growth, grow_params, is_new, map_moments
from tamiyo_jax.expansion._schedule import (
    Curve,
    marginal_return,
    next_stage,
    on_plateau,
    returns_more,
)
from tamiyo_jax.expansion._width import Dimension, widen

__all__ = [
    "CompileAhead",
    "Curve",
    "Dimension",
    "Growth",
    "WarmUpState",
    "compile_program",
    "deepen",
    "grow_opt_state",
    "grow_params",
    "is_new",
    "map_moments",
    "marginal_return",
    "next_stage",
    "on_plateau",
    "returns_more",
    "warm_up_new",
    "widen",
]
