"""Running a policy under its deadline, in this process or in a worker that can be killed."""

from tamiyo_jax.inference._answers import check_answer
from tamiyo_jax.inference._deployed import DeployedPolicy, Deployment, Isolation
from tamiyo_jax.inference._inference import InlineRunner
from tamiyo_jax.inference._policies import PolicyChoice, choose_policy, require_parameters
from tamiyo_jax.inference._shipped import SHIPPED, SHIPPED_VERSION, shipped_params
from tamiyo_jax.inference._updates import check_parameters, make_trial_situation

__all__ = [
    "SHIPPED",
    "SHIPPED_VERSION",
    "DeployedPolicy",
    "Deployment",
    "InlineRunner",
    "Isolation",
    "PolicyChoice",
    "check_answer",
    "check_parameters",
    "choose_policy",
    "make_trial_situation",
    "require_parameters",
    "shipped_params",
]
