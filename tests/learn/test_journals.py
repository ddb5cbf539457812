"""Journals become examples, and a network learns the choices that they hold."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import invoke
from making import make_library, make_packet, make_seed, open_tamiyo

from tamiyo_jax.config import PolicyConfig, TamiyoConfig
from tamiyo_jax.contracts import SeedStage
from tamiyo_jax.errors import ConfigurationError, UnknownBlueprintError
from tamiyo_jax.learn import FitSettings, agreement, clone, dataset, select_runs
from tamiyo_jax.library import MemoryBlueprintLibrary, SqliteBlueprintLibrary
from tamiyo_jax.policy import Action, GraphPolicy, abstract_params, init_params, load_params

pytestmark = pytest.mark.usefixtures("standard_promotion")

EPOCHS = 14
UPDATES = 200  # the same in all tests, which then compile once


def log_run(directory: Path, run: int) -> list[str]:
    """A run whose seed germinates, trains, blends and stays; what was decided upon each packet."""
    stages = {
        9: SeedStage.GERMINATED,
        10: SeedStage.TRAINING,
        13: SeedStage.BLENDING,
    }
    stage, actions = SeedStage.DORMANT, []
    with open_tamiyo(directory) as tamiyo:
        for epoch in range(EPOCHS):
            stage = stages.get(epoch, stage)
            loss = max(0.5, 1.0 - 0.1 * epoch) + 0.001 * run
            seeds = (make_seed("s0", stage, age_epochs=max(epoch - 9, 0)),)
            packet = make_packet(
                epoch,
                training_run_id=f"run-of-{run}",
                validation_loss=loss,
                training_loss=loss,
                seeds=seeds,
            )
            actions.append(tamiyo.step(packet).action)
    return actions


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    root = tmp_path_factory.mktemp("journals")
    library = SqliteBlueprintLibrary(root / "blueprints.db")
    held = make_library()
    for name in ("host", "grow-a", "grow-b"):
        found = held.get(name)
        assert found is not None
        library.put(found)
    return root, [log_run(root / f"run-{run}", run) for run in range(6)]


@cache
def read(root: Path):
    directories = sorted(home.parent for home in root.glob("*/journal"))
    return dataset(directories, make_library(), TamiyoConfig())


def test_a_dataset_holds_what_was_decided_upon_each_packet(logged) -> None:
    root, actions = logged
    data = read(root)
    assert len(data.run) == 6 * EPOCHS
    names = [Action(int(action)).name for action in data.chosen.action]
    assert names == [name for run in actions for name in run]
    assert {"GERMINATE", "ADVANCE", "WAIT"} <= set(names)
    grown = data.chosen.action == Action.GERMINATE
    assert set(data.chosen.blueprint[grown].tolist()) <= {1, 2}
    assert set(data.blueprints) == {"host", "grow-a", "grow-b"}


def test_rewards_sum_to_what_the_loss_fell_by_until_the_end_of_the_run(logged) -> None:
    data = read(logged[0])
    for run in range(6):
        mine = data.run == run
        np.testing.assert_allclose(
            data.returns[mine][0], data.losses[mine][0] - data.losses[mine][-1], rtol=1e-5
        )
        assert data.returns[mine][-1] == 0


def test_the_graphs_are_those_that_a_live_policy_sees(logged) -> None:
    """The last graph of a run, normalised by the policy itself, packet by packet."""
    from tamiyo_jax.graph import Registries, build, encode_blueprint, encode_packet, layout_for
    from tamiyo_jax.replay import read_history

    root, _ = logged
    data, library, config = read(root), make_library(), TamiyoConfig()
    host = library.get("host")
    candidates = tuple(library.get(name) for name in ("grow-a", "grow-b"))
    layout = layout_for(host, config.graph)
    arrays, registries = encode_blueprint(host, layout), Registries.empty()
    state = GraphPolicy(config.graph).initial_state()
    graph = None
    for event in read_history(root / "run-2"):
        raw, registries = encode_packet(event.packet, arrays, candidates, registries)
        state, graph = build(layout, state, raw, rate=config.graph.normalizer_rate)
    last = np.flatnonzero(data.run == 2)[-1]
    for name, block in data.layout.nodes.items():
        wide = np.asarray(graph.nodes["x"])[layout.nodes[name].slice][: block.capacity]
        np.testing.assert_allclose(data.graphs.nodes["x"][last][block.slice], wide, rtol=1e-5)


@pytest.mark.slow
def test_agreement_is_counted_action_by_action(logged) -> None:
    """An untrained network germinates wherever that is legal, and waits nowhere."""
    data = read(logged[0])
    untrained = init_params(PolicyConfig.small(), jax.random.key(0))
    rows = {row.action: row for row in agreement(untrained, data)}
    assert rows["GERMINATE"].recall == 1.0
    assert rows["WAIT"].recall < 0.5
    names = [Action(int(action)).name for action in data.chosen.action]
    assert {name: row.recorded for name, row in rows.items()} == Counter(names)


@pytest.mark.slow
def test_a_clone_chooses_as_the_heuristic_did_in_a_run_that_it_did_not_see(logged) -> None:
    data = read(logged[0])
    settings = FitSettings(updates=UPDATES)
    seen, unseen = select_runs(data, range(5)), select_runs(data, [5])
    params = clone(seen, 0, settings, config=PolicyConfig.small())
    rows = {row.action: row for row in agreement(params, unseen)}
    assert min(row.recall for row in rows.values()) >= 0.9
    again = clone(seen, 0, settings, config=PolicyConfig.small())
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_journals_of_blueprints_that_the_library_lacks_are_refused(logged) -> None:
    with pytest.raises(UnknownBlueprintError, match="host"):
        dataset([logged[0] / "run-0"], MemoryBlueprintLibrary(), TamiyoConfig())


def test_a_journal_without_decisions_of_a_policy_is_refused(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path, mode="guard") as tamiyo:
        tamiyo.step(make_packet())
    with pytest.raises(ConfigurationError, match="no decision of a policy"):
        dataset([tmp_path], make_library(), TamiyoConfig())


@pytest.mark.slow
def test_the_command_writes_a_policy_with_its_card(logged, tmp_path: Path) -> None:
    root, _ = logged
    output = tmp_path / "policy"
    arguments = (
        "train",
        "--from-journals",
        str(root),
        "--output",
        str(output),
        "--updates",
        str(UPDATES),
    )
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "recall" in result.stdout
    load_params(output / "params.safetensors", PolicyConfig.small())
    card = json.loads((output / "card.json").read_text())
    assert (card["learner"], card["runs"], card["decisions"]) == ("journals", 5, 5 * EPOCHS)
    assert abstract_params(PolicyConfig.small()).keys() == {
        path.split("/")[0] for path in _names(output)
    }
    assert invoke(*arguments).exit_code != 0  # what is there is not overwritten


def _names(output: Path) -> list[str]:
    from tamiyo_jax.policy import arrays_from_bytes

    return list(arrays_from_bytes((output / "params.safetensors").read_bytes()))
