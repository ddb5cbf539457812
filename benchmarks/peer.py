"""The policy's network in PyTorch Geometric, over its public layers: what others would write.

Module names are those of the checkpoints that `tamiyo_jax.policy.import_state_dict` reads, so
both networks have the same weights. Needs the extra ``bench``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, HeteroData
from torch_geometric.nn import GATConv, HeteroConv, SAGEConv

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.graph import EDGE_WIDTH, NODE_TYPES, RELATIONS
from tamiyo_jax.policy import NUM_ACTIONS, Params, PolicyOutputs, import_state_dict
from tamiyo_jax.policy._network import NUM_BREAKER_LOGITS, NUM_PARAMS, NUM_RISK_CLASSES

__all__ = ["Inputs", "PeerNetwork", "batched", "differences", "hetero_data", "inputs", "our_params"]

EdgeType = tuple[str, str, str]
Inputs = tuple[dict[str, Tensor], dict[EdgeType, Tensor], dict[EdgeType, Tensor]]
"""Nodes f32[n, F] by type; by relation, edges i64[2, e] and their attributes f32[e, 3]."""

EDGE_TYPES: Mapping[str, EdgeType] = {
    relation.key: (relation.source, relation.name, relation.target) for relation in RELATIONS
}
NUM_SCHEDULE = 2


def _encoder(features: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.LayerNorm(width))


def _bounded(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, outputs))


def _sage(width: int) -> HeteroConv:
    return HeteroConv(
        {kind: SAGEConv((width, width), width) for kind in EDGE_TYPES.values()}, aggr="mean"
    )


def _gat(width: int, outputs: int, heads: int) -> HeteroConv:
    return HeteroConv(
        {
            kind: GATConv(
                (width, width),
                outputs,
                heads=heads,
                concat=False,
                add_self_loops=False,
                edge_dim=EDGE_WIDTH,
            )
            for kind in EDGE_TYPES.values()
        },
        aggr="mean",
    )


class PeerNetwork(nn.Module):
    """The network of the policy, for one graph or for a batch of B graphs.

    Args:
      config: widths, heads and blending methods.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        sage, gat, heads = config.sage_width, config.gat_width, config.heads
        self._node_encoders = nn.ModuleDict(
            {kind.name: _encoder(kind.width, sage) for kind in NODE_TYPES}
        )
        self._sage_layers = nn.ModuleList([_sage(sage), _sage(sage)])
        self._gat_layers = nn.ModuleList([_gat(sage, gat, heads), _gat(gat, gat, heads)])
        self._policy_head = nn.Linear(gat, NUM_ACTIONS)
        self._param_head = _bounded(gat, NUM_PARAMS)
        self._blending_head = nn.Linear(gat, len(config.blending_methods))
        self._schedule_head = _bounded(gat, NUM_SCHEDULE)
        self._seed_score_head = nn.Linear(gat, 1)
        self._blueprint_score_head = nn.Linear(gat, 1)
        self._breaker_head = nn.Linear(gat, NUM_BREAKER_LOGITS)
        self._risk_head = nn.Linear(gat, NUM_RISK_CLASSES)
        self._value_head = nn.Linear(gat, 1)

    def forward(
        self,
        nodes: dict[str, Tensor],
        edges: dict[EdgeType, Tensor],
        attributes: dict[EdgeType, Tensor],
    ) -> dict[str, Tensor]:
        """Outputs by the names of `PolicyOutputs`, each with an axis of B or of nodes first."""
        h = {name: encode(nodes[name]) for name, encode in self._node_encoders.items()}
        for layer in self._sage_layers:
            h = _updated(h, layer(h, edges))
        for layer in self._gat_layers:
            h = _updated(h, layer(h, edges, edge_attr_dict=attributes))
        embedding = h["global"]
        params = torch.tanh(self._param_head(embedding))
        return {
            "policy_logits": self._policy_head(embedding),
            "policy_params": params,
            "param_delta": params[:, 0],
            "blending_logits": self._blending_head(embedding),
            "risk_logits": self._risk_head(embedding),
            "value": self._value_head(embedding),
            "schedule_params": torch.tanh(self._schedule_head(embedding)),
            "breaker_logits": self._breaker_head(embedding),
            "seed_scores": self._seed_score_head(h["seed"]),
            "blueprint_scores": self._blueprint_score_head(h["blueprint"]),
            "graph_embedding": embedding,
        }


def _updated(before: dict[str, Tensor], messages: dict[str, Tensor]) -> dict[str, Tensor]:
    after = {name: nn.functional.gelu(message) for name, message in messages.items()}
    if after["global"].shape != before["global"].shape:
        return after
    return {name: h + before[name] for name, h in after.items()}


def our_params(network: PeerNetwork, config: PolicyConfig) -> Params:
    """The network's weights as ours, by the importer."""
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return import_state_dict(state, config)[1]


def hetero_data(
    nodes: Mapping[str, np.ndarray], edges: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> HeteroData:
    """A graph with all its edges written out.

    Args:
      nodes: f32[n, F], by type.
      edges: integers [2, e] and f32[e, 3], by relation.
    """
    data = HeteroData()
    for name, x in nodes.items():
        data[name].x = torch.from_numpy(x)
    for key, (index, attributes) in edges.items():
        data[EDGE_TYPES[key]].edge_index = torch.from_numpy(index.astype(np.int64))
        data[EDGE_TYPES[key]].edge_attr = torch.from_numpy(attributes)
    return data


def batched(graphs: list[HeteroData]) -> Batch:
    """Several graphs as one."""
    return Batch.from_data_list(graphs)


def inputs(data: HeteroData | Batch) -> Inputs:
    """What the network takes of a graph or of a batch."""
    return data.x_dict, data.edge_index_dict, data.edge_attr_dict


def differences(ours: PolicyOutputs, theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """Largest absolute difference of each output, for one graph or a batch.

    Scores of padding, -inf in ours alone, are left out.
    """
    found: dict[str, float] = {}
    for name, tensor in theirs.items():
        got = np.asarray(getattr(ours, name)).reshape(-1)
        got, want = got[~np.isneginf(got)], tensor.numpy().reshape(-1)
        found[name] = float(np.max(np.abs(got - want), initial=0.0))
    return found
