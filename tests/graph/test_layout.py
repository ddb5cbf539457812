"""A layout's identity, in this process and in others."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

from making import make_blueprint

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.graph import GraphLayout, layout_for

_ELSEWHERE = """
import pickle, sys
layout = pickle.loads(sys.stdin.buffer.read())
same = type(layout)(layout.node_capacities, layout.edge_capacities)
assert {layout: "found"}[same] == "found"
"""


def test_equal_layouts_are_one_key_also_after_travelling_to_another_process() -> None:
    layout = layout_for(make_blueprint(), GraphConfig())
    same = GraphLayout(layout.node_capacities, layout.edge_capacities)
    assert layout == same
    assert hash(layout) == hash(same)
    assert layout.nodes == same.nodes
    subprocess.run(
        [sys.executable, "-c", _ELSEWHERE],
        input=pickle.dumps(layout),
        env=os.environ | {"PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )


def test_layouts_that_differ_anywhere_are_different_keys() -> None:
    blueprint = make_blueprint()
    wide = layout_for(blueprint, GraphConfig(max_seeds=4))
    assert len({wide, layout_for(blueprint, GraphConfig(max_seeds=8))}) == 2
