"""How much the shipped policy's decisions lose against the best of all that could be tried.

    .venv/bin/python benchmarks/policy_regret.py

From states of the policy's own runs every kind of legal action is tried, with the same randomness,
and the run is played to its end by the policy; see `tamiyo_jax.learn.branch`. The regret of a
choice is the best return less its own, in the logarithm of the test loss with the prices of size
and decisions. The best is known in hindsight alone, for the very batches that came, so no policy
reaches a regret of zero; waiting and a choice by chance stand beside it.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np

from tamiyo_jax.inference import shipped_params
from tamiyo_jax.learn import (
    HostEnv,
    Prices,
    Setting,
    branch,
    compare,
    find_family,
    follow_network,
)
from tamiyo_jax.learn._fitting import outputs_of
from tamiyo_jax.learn._playing import stack
from tamiyo_jax.policy import Action, select

EPOCHS = (2, 6, 10, 14, 18)


def own_choice(env: HostEnv, made: object, options: object, params: object) -> np.ndarray:
    """i32[T]: the option that is nearest to what the policy chooses; the first is WAIT.

    A candidate is tried in one slot only, so the slot of a germination is not compared.
    """
    outputs = outputs_of(params, env.layout, made.graphs)
    chosen = jax.tree.map(np.asarray, jax.vmap(select)(outputs, made.legality))
    delta = np.asarray(outputs.param_delta)[:, None]
    same = options.action[None] == chosen.action[:, None]
    for name in ("seed", "blueprint"):
        wanted, row = getattr(options, name)[None], getattr(chosen, name)[:, None]
        germinates = options.action[None] == Action.GERMINATE
        same &= (wanted < 0) | (wanted == row) | (germinates & (name == "seed"))
    turns = options.action[None] == Action.OPTIMIZER
    far = np.where(turns, np.abs(options.lr_delta[None] - delta), 0.0)
    tried = np.isfinite(made.returns)
    score = np.where(same & tried, far, np.where(tried, 1e3, np.inf))
    return np.where((same & tried).any(axis=1), np.argmin(score, axis=1), 0)


def main() -> None:
    """Branch, and print the regrets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=["rings", "board", "parity"])
    parser.add_argument("--states", type=int, default=12, help=f"of each epoch of {EPOCHS}")
    arguments = parser.parse_args()
    families = [find_family(name) for name in arguments.families]
    env, params = HostEnv(families[0].architecture), shipped_params()
    pilots = stack([follow_network(env.epochs)])
    setting, generator = Setting(env, families, pilots, pilots), np.random.default_rng(7)
    regrets: dict[str, list[np.ndarray]] = {"policy": [], "WAIT": [], "chance": []}
    for epoch in EPOCHS:
        made = branch(
            setting, params, generator, states=arguments.states, epoch=epoch, prices=Prices()
        )
        best = np.nanmax(made.returns, axis=1)
        row = own_choice(env, made, jax.tree.map(np.asarray, made.options), params)
        regrets["policy"].append(best - made.returns[np.arange(len(row)), row])
        regrets["WAIT"].append(best - made.returns[:, 0])
        regrets["chance"].append(best - np.nanmean(made.returns, axis=1))
    for name, parts in regrets.items():
        found = np.concatenate(parts)
        interval = compare(found, np.zeros_like(found))
        print(
            f"{name:<8} regret {interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}] "
            f"over {len(found)} states"
        )


if __name__ == "__main__":
    main()
