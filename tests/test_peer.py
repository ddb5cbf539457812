"""The peer that benchmarks compare with computes the same network."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.graph import NODE_TYPES, RELATIONS
from tamiyo_jax.policy import apply, import_state_dict, load_state_dict

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
GOLDEN = ("policy_small", "policy_empty_relations", "policy_no_seeds")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    """Imports a module of `benchmarks/` by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in {"peer", "sizes"} & (set(sys.modules) - before):
        del sys.modules[name]


@pytest.mark.filterwarnings("ignore")  # of PyTorch Geometric, about PyTorch
@pytest.mark.parametrize("name", GOLDEN)
def test_the_peer_reproduces_the_golden_files(name: str, golden: Path, benchmark) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch_geometric")
    peer = benchmark("peer")
    arrays = load_state_dict(golden / f"{name}.npz")
    state = {
        key.removeprefix("params/"): array
        for key, array in arrays.items()
        if key.startswith("params/")
    }
    network = peer.PeerNetwork(import_state_dict(state)[0]).eval()
    network.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()})
    data = peer.hetero_data(
        {kind.name: arrays[f"nodes/{kind.name}"] for kind in NODE_TYPES},
        {
            relation.key: (
                arrays[f"edges/{relation.key}/index"],
                arrays[f"edges/{relation.key}/attr"],
            )
            for relation in RELATIONS
        },
    )
    with torch.inference_mode():
        outputs = network(*peer.inputs(data))
    expected = [key for key in arrays if key.startswith("outputs/")]
    assert expected
    for key in expected:
        got = outputs[key.removeprefix("outputs/")].numpy().reshape(-1)
        np.testing.assert_allclose(got, arrays[key].reshape(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_both_networks_agree_on_the_toy_with_its_edges_written_out(benchmark) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch_geometric")
    peer, sizes = benchmark("peer"), benchmark("sizes")
    size, config = sizes.SIZES["toy"](), PolicyConfig.small()
    torch.manual_seed(0)
    network = peer.PeerNetwork(config).eval()
    (graph,) = size.graphs(1)
    with torch.inference_mode():
        theirs = network(*peer.inputs(peer.hetero_data(*sizes.explicit(size.layout, graph))))
    params = peer.our_params(network, config)
    ours = jax.jit(apply, static_argnums=1)(params, size.layout, graph)
    assert max(peer.differences(ours, theirs).values()) < 1e-5


@pytest.mark.parametrize(
    ("name", "nodes", "edges"),
    [("toy", 14, 92), ("network", 658, 111_312), ("large", 10_000, 58_511)],
)
def test_the_sizes_are_what_they_say(name: str, nodes: int, edges: int, benchmark) -> None:
    sizes = benchmark("sizes")
    size = sizes.SIZES[name]()
    (graph,) = size.graphs(1)
    found, links = sizes.explicit(size.layout, graph)
    assert sum(len(x) for x in found.values()) == nodes
    assert sum(len(attributes) for _, attributes in links.values()) == edges
