"""The policies: from a packet to a proposed action.

A policy is anything that satisfies `Policy`: the graph network, the heuristic, or yours.
"""

from tamiyo_jax.policy._actions import ACTIONS, Action, ActionRule, Selection, legality, select
from tamiyo_jax.policy._choice import Choice, first_legal, outputs_for
from tamiyo_jax.policy._fold import FoldedParams, fold
from tamiyo_jax.policy._folded import apply_folded
from tamiyo_jax.policy._graph_policy import GraphPolicy, decide_many, policy_step
from tamiyo_jax.policy._heuristic import HeuristicPolicy
from tamiyo_jax.policy._heuristic_state import HeuristicState
from tamiyo_jax.policy._network import Params, PolicyNetwork, abstract_params, apply, init_params
from tamiyo_jax.policy._outputs import (
    NUM_ACTIONS,
    ArrayPolicy,
    Legality,
    Observation,
    Policy,
    PolicyOutputs,
    Rationale,
)
from tamiyo_jax.policy._parameters import (
    arrays_from_bytes,
    export_params,
    fit_params,
    load_params,
    params_to_bytes,
)
from tamiyo_jax.policy._proposal import Proposal, propose
from tamiyo_jax.policy._torch_import import import_state_dict, load_state_dict

__all__ = [
    "ACTIONS",
    "NUM_ACTIONS",
    "Action",
    "ActionRule",
    "ArrayPolicy",
    "Choice",
    "FoldedParams",
    "GraphPolicy",
    "HeuristicPolicy",
    "HeuristicState",
    "Legality",
    "Observation",
    "Params",
    "Policy",
    "PolicyNetwork",
    "PolicyOutputs",
    "Proposal",
    "Rationale",
    "Selection",
    "abstract_params",
    "apply",
    "apply_folded",
    "arrays_from_bytes",
    "decide_many",
    "export_params",
    "first_legal",
    "fit_params",
    "fold",
    "import_state_dict",
    "init_params",
    "legality",
    "load_params",
    "load_state_dict",
    "outputs_for",
    "params_to_bytes",
    "policy_step",
    "propose",
    "select",
]
