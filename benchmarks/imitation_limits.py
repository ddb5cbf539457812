"""What keeps a policy without a memory from imitating the heuristic.

    .venv/bin/python benchmarks/logged_runs.py DIRECTORY --runs 60
    .venv/bin/python benchmarks/imitation_limits.py DIRECTORY

The same classifier (extremely randomised trees, Geurts et al. 2006) learns the heuristic's choices
in runs 0 to 49 three times: from the graph that the policy's network sees; with the blend α of each
seed beside it; and with what the heuristic remembers (epochs since an improvement, since a cull and
in a stage, rises of the loss in a row, epochs of harm). Prints recall and precision in the others.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier

from tamiyo_jax.config import HeuristicConfig, TamiyoConfig
from tamiyo_jax.learn import Dataset, dataset
from tamiyo_jax.library import SqliteBlueprintLibrary
from tamiyo_jax.policy import Action
from tamiyo_jax.policy._heuristic_state import HeuristicState, observe
from tamiyo_jax.replay import read_history

LEARNED_FROM = 50
LONG_AGO = -50


def remembered(directories: list[Path], data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """What the heuristic remembers at each decision, f64[T, n], and the blends, f64[T, seeds]."""
    memory: list[list[float]] = []
    blends: list[list[float]] = []
    for directory in directories:
        state = HeuristicState()
        for event in read_history(directory):
            packet = getattr(event, "packet", None)
            if packet is None:
                continue
            state = observe(HeuristicConfig(), state, packet)
            culled = LONG_AGO if state.culled_at is None else state.culled_at
            ids = [seed.seed_id for seed in packet.seeds]
            in_stage = [state.epoch - state.entered.get(name, 0) for name in ids]
            harm = [state.harm.get(name, 0) for name in ids]
            memory.append([state.stalled, state.rises, state.epoch - culled, *in_stage, *harm])
            blends.append([seed.metrics.get("alpha", 0.0) for seed in packet.seeds])
            if data.chosen.action[len(memory) - 1] == Action.OPTIMIZER:
                state = replace(state, rises=0)
    return np.array(memory, np.float64), np.array(blends, np.float64)


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    root: Path = parser.parse_args().directory
    directories = sorted(home.parent for home in root.glob("*/journal"))
    data = dataset(directories, SqliteBlueprintLibrary(root / "blueprints.db"), TamiyoConfig())
    memory, blends = remembered(directories, data)
    graphs = np.asarray(data.graphs.nodes["x"]).reshape(len(data.run), -1)
    seen = data.run < LEARNED_FROM
    inputs = {
        "graph": graphs,
        "graph and blends": np.hstack([graphs, blends]),
        "graph, blends and memory": np.hstack([graphs, blends, memory]),
    }
    actions = data.chosen.action
    for name, features in inputs.items():
        trees = ExtraTreesClassifier(
            300, class_weight="balanced", min_samples_leaf=3, max_features=0.3, random_state=0
        ).fit(features[seen], actions[seen])
        ours, theirs = trees.predict(features[~seen]), actions[~seen]
        print(name)
        for action in np.unique(theirs):
            both = np.sum((ours == action) & (theirs == action))
            there, here = np.sum(theirs == action), max(np.sum(ours == action), 1)
            label = f"{Action(int(action)).name:<10} {there:4}"
            print(f"  {label}  recall {both / there:.2f}  precision {both / here:.2f}")


if __name__ == "__main__":
    main()
