"""Parameters of a PyTorch Geometric network as ours.

The table of names is the whole conversion: each row says which tensor of a state dict is
which of our arrays, and how its axes turn. Files are ``.npz`` or ``.safetensors``; nothing
here unpickles.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.errors import CheckpointMismatchError
from tamiyo_jax.graph import NODE_TYPES, RELATIONS
from tamiyo_jax.policy._network import Params, abstract_params

__all__ = ["import_state_dict", "load_state_dict"]

_SEPARATOR = "/"


class Row(NamedTuple):
    """One tensor: its name in a state dict, its path in our tree, and how its axes turn.

    `turn` takes the tensor and our shape, and returns the array in our shape.
    """

    torch: str
    ours: str
    turn: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _reshape(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return tensor.reshape(shape)


def _transpose(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A linear layer's weight [out, in] as a kernel [in, out], or [in, heads, out]."""
    return tensor.T.reshape(shape)


def _linear(torch: str, ours: str) -> Iterator[Row]:
    yield Row(f"{torch}.weight", f"{ours}/kernel", _transpose)
    yield Row(f"{torch}.bias", f"{ours}/bias", _reshape)


_HEADS = (
    ("_policy_head", "policy_logits"),
    ("_param_head.0", "policy_params/hidden"),
    ("_param_head.2", "policy_params/out"),
    ("_blending_head", "blending_logits"),
    ("_schedule_head.0", "schedule_params/hidden"),
    ("_schedule_head.2", "schedule_params/out"),
    ("_seed_score_head", "seed_scores"),
    ("_blueprint_score_head", "blueprint_scores"),
    ("_breaker_head", "breaker_logits"),
    ("_risk_head", "risk_logits"),
    ("_value_head", "value"),
)


def _table() -> Iterator[Row]:
    for kind in NODE_TYPES:
        torch, ours = f"_node_encoders.{kind.name}", f"encoder_{kind.name}"
        yield from _linear(f"{torch}.0", f"{ours}/linear")
        yield Row(f"{torch}.2.weight", f"{ours}/norm/scale", _reshape)
        yield Row(f"{torch}.2.bias", f"{ours}/norm/bias", _reshape)
    for layer in (0, 1):
        for relation in RELATIONS:
            name = f"<{relation.source}___{relation.name}___{relation.target}>"
            torch, ours = f"_sage_layers.{layer}.convs.{name}", f"sage_{layer}/{relation.key}"
            yield Row(f"{torch}.lin_l.weight", f"{ours}/neighbours/kernel", _transpose)
            yield Row(f"{torch}.lin_l.bias", f"{ours}/root/bias", _reshape)
            yield Row(f"{torch}.lin_r.weight", f"{ours}/root/kernel", _transpose)
            torch, ours = f"_gat_layers.{layer}.convs.{name}", f"gat_{layer}/{relation.key}"
            for theirs, end in (("src", "source"), ("dst", "target"), ("edge", "edge")):
                yield Row(f"{torch}.lin_{theirs}.weight", f"{ours}/{end}_kernel", _transpose)
                yield Row(f"{torch}.att_{theirs}", f"{ours}/{end}_attention", _reshape)
            yield Row(f"{torch}.bias", f"{ours}/bias", _reshape)
    for torch, ours in _HEADS:
        yield from _linear(torch, ours)


def load_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Tensors by name, from an ``.npz`` or a ``.safetensors`` file; never from a pickle.

    Raises:
      CheckpointMismatchError: the file is of another kind, or is damaged.
      FileNotFoundError: there is no such file.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        if path.suffix == ".safetensors":
            return load_file(path)
    except (ValueError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise CheckpointMismatchError(
            f"{path} does not hold plain arrays ({error}); save the state dict again",
            path=str(path),
        ) from error
    raise CheckpointMismatchError(
        f"{path} is neither .npz nor .safetensors; a pickle can run code and is never opened. "
        "Save the state dict with safetensors.torch.save_file or numpy.savez",
        path=str(path),
    )


def import_state_dict(
    state_dict: Mapping[str, np.ndarray], config: PolicyConfig | None = None
) -> tuple[PolicyConfig, Params]:
    """Our parameters from those of a PyTorch Geometric network.

    Args:
      state_dict: tensors by PyTorch's names.
      config: settings to keep, blending methods above all; widths and heads are read off
        the tensors.

    Returns:
      The configuration with the widths found, and the parameters in float32.

    Raises:
      CheckpointMismatchError: a tensor is missing, unexpected or of the wrong shape; the
        error lists all of them as `missing`, `unexpected` and `wrong`.
    """
    rows = tuple(_table())
    _check_names(frozenset(row.torch for row in rows), frozenset(state_dict), "the state dict")
    config = _widths(state_dict, config or PolicyConfig())
    shapes = _flat(abstract_params(config))
    params: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    for row in rows:
        tensor, shape = state_dict[row.torch], shapes[row.ours].shape
        if tensor.shape != _torch_shape(row, shape):
            wrong.append(f"{row.torch}: {tensor.shape} for {_torch_shape(row, shape)}")
        else:
            params[row.ours] = row.turn(np.asarray(tensor, np.float32), shape)
    _check_shapes(wrong, "the state dict")
    return config, unflatten_dict(params, sep=_SEPARATOR)


def _widths(state_dict: Mapping[str, np.ndarray], config: PolicyConfig) -> PolicyConfig:
    attention = state_dict[f"_gat_layers.0.convs.{_first_relation()}.att_src"]
    if attention.ndim != 3:
        _check_shapes([f"att_src: {attention.shape} for (1, heads, width)"], "the state dict")
    _, heads, gat_width = attention.shape
    sage_width = state_dict["_node_encoders.global.0.bias"].shape[0]
    return config.model_copy(
        update={"sage_width": sage_width, "gat_width": gat_width, "heads": heads}
    )


def _first_relation() -> str:
    relation = RELATIONS[0]
    return f"<{relation.source}___{relation.name}___{relation.target}>"


def _torch_shape(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a state dict must give to `row` so that it turns into ours."""
    if row.turn is _transpose:
        return (int(np.prod(shape[1:])), shape[0])
    return (1, *shape) if row.torch.split(".")[-1].startswith("att_") else shape


def _flat(params: Params) -> dict[str, Any]:
    """Arrays, or their shapes and dtypes, by their paths."""
    return cast(dict[str, Any], flatten_dict(dict(params), sep=_SEPARATOR))


def _check_names(expected: frozenset[str], found: frozenset[str], where: str) -> None:
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing or unexpected:
        raise CheckpointMismatchError(
            f"{where} does not fit the network: {len(missing)} tensors are missing, "
            f"{len(unexpected)} unexpected; the first is {(missing + unexpected)[0]}",
            missing=missing,
            unexpected=unexpected,
            wrong=[],
        )


def _check_shapes(wrong: list[str], where: str) -> None:
    if wrong:
        raise CheckpointMismatchError(
            f"{where} does not fit the configuration's widths: {len(wrong)} tensors differ; "
            f"the first is {wrong[0]}",
            missing=[],
            unexpected=[],
            wrong=wrong,
        )
