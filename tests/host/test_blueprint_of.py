"""Blueprints of real models say what the models' code says."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from host.architectures import (
    Architecture,
    decoder,
    equinox_transformer,
    linen,
    mixer,
    mlp,
    nnx_resnet,
    nnx_unet,
    resnet,
    scanned_decoder,
    unet,
    vit,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from making import make_config, make_library, make_packet, open_tamiyo

from tamiyo_jax.contracts import Blueprint, LayerEdge, blueprint_from_json, blueprint_to_json
from tamiyo_jax.demo import digits_task
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.growth import Gate
from tamiyo_jax.host import blueprint_of, layer_names
from tamiyo_jax.policy import init_params

# Of each layer: type, depth, parameters, activation, and the layers whose outputs it takes.
Row = tuple[str, int, int, str, list[str]]
Table = Mapping[str, Row]


def table_of(blueprint: Blueprint) -> dict[str, Row]:
    names = [layer.layer_id for layer in blueprint.layers]
    assert blueprint.layer_edges is not None
    return {
        layer.layer_id: (
            layer.type,
            layer.depth,
            layer.parameter_count or 0,
            layer.activation,
            [names[edge.source] for edge in blueprint.layer_edges if edge.target == index],
        )
        for index, layer in enumerate(blueprint.layers)
    }


MLP: Table = {
    "hidden_0": ("dense", 0, 6 * 4 + 4, "tanh", []),
    "hidden_1": ("dense", 1, 4 * 3 + 3, "relu", ["hidden_0"]),
    "readout": ("dense", 2, 3 * 2 + 2, "identity", ["hidden_1"]),
}

RESNET: Table = {
    "stem": ("conv", 0, 9 * 4, "identity", []),
    "stem_norm": ("normalization", 1, 8, "relu", ["stem"]),
    "block_0/conv_0": ("conv", 2, 9 * 4 * 4, "identity", ["stem_norm"]),
    "block_0/norm_0": ("normalization", 3, 8, "relu", ["block_0/conv_0"]),
    "block_0/conv_1": ("conv", 4, 9 * 4 * 4, "identity", ["block_0/norm_0"]),
    "block_0/norm_1": ("normalization", 5, 8, "relu", ["block_0/conv_1"]),
    # The sum behind block 0 is the identity shortcut's and the branch's.
    "block_1/conv_0": ("conv", 6, 9 * 4 * 8, "identity", ["stem_norm", "block_0/norm_1"]),
    "block_1/norm_0": ("normalization", 7, 16, "relu", ["block_1/conv_0"]),
    "block_1/conv_1": ("conv", 8, 9 * 8 * 8, "identity", ["block_1/norm_0"]),
    "block_1/norm_1": ("normalization", 9, 16, "relu", ["block_1/conv_1"]),
    "block_1/shortcut": ("conv", 6, 4 * 8, "relu", ["stem_norm", "block_0/norm_1"]),
    "head": ("dense", 10, 8 * 3 + 3, "identity", ["block_1/norm_1", "block_1/shortcut"]),
}


def attention(
    block: str, depth: int, *, count: int, qkv: tuple[str, str, str], out: str
) -> dict[str, Row]:
    """Queries, keys and values take the block's first norm; the output takes all three."""
    query, key, value = (f"{block}/attention/{name}" for name in qkv)
    return {
        query: ("dense", depth, count, "softmax", [f"{block}/norm_0"]),
        key: ("dense", depth, count, "softmax", [f"{block}/norm_0"]),
        value: ("dense", depth, count, "identity", [f"{block}/norm_0"]),
        f"{block}/attention/{out}": ("dense", depth + 1, count, "identity", [query, key, value]),
    }


FLAX = {"count": 6 * 6 + 6, "qkv": ("query", "key", "value"), "out": "out"}
EQUINOX = {
    "count": 6 * 6,
    "qkv": ("query_proj", "key_proj", "value_proj"),
    "out": "output_proj",
}

# What has been added to the residual stream before each block and each block's second half.
STREAM = ["positions", "block_0/attention/out", "block_0/project"]
STREAM_END = [*STREAM, "block_1/attention/out", "block_1/project"]

VIT: Table = {
    "patches": ("conv", 0, 16 * 6 + 6, "identity", []),
    "token": ("learned_input", 0, 6, "identity", []),
    "positions": ("bias", 1, 5 * 6, "identity", ["patches", "token"]),
    "block_0/norm_0": ("normalization", 2, 12, "identity", STREAM[:1]),
    **attention("block_0", 3, **FLAX),
    "block_0/norm_1": ("normalization", 5, 12, "identity", STREAM[:2]),
    "block_0/expand": ("dense", 6, 6 * 12 + 12, "gelu", ["block_0/norm_1"]),
    "block_0/project": ("dense", 7, 12 * 6 + 6, "identity", ["block_0/expand"]),
    "block_1/norm_0": ("normalization", 8, 12, "identity", STREAM),
    **attention("block_1", 9, **FLAX),
    "block_1/norm_1": ("normalization", 11, 12, "identity", STREAM_END[:-1]),
    "block_1/expand": ("dense", 12, 6 * 12 + 12, "gelu", ["block_1/norm_1"]),
    "block_1/project": ("dense", 13, 12 * 6 + 6, "identity", ["block_1/expand"]),
    "norm": ("normalization", 14, 12, "identity", STREAM_END),
    "head": ("dense", 15, 6 * 3 + 3, "identity", ["norm"]),
}


def gated_block(
    block: str, depth: int, *, layers: int, before: list[str], loop: list[str]
) -> dict[str, Row]:
    """A decoder block, or a stack of them, on the stream `before`; `loop` closes a stack."""
    out, norm = f"{block}/attention/out", f"{block}/norm_1"
    gate, up = f"{block}/gate", f"{block}/up"
    taken = [*before, out, *(name for name in loop if name != out)]
    return {
        f"{block}/norm_0": ("normalization", depth, layers * 6, "identity", [*before, *loop]),
        **attention(block, depth + 1, **{**FLAX, "count": layers * (6 * 6 + 6)}),
        norm: ("normalization", depth + 3, layers * 6, "identity", taken),
        gate: ("dense", depth + 4, layers * 48, "silu", [norm]),
        up: ("dense", depth + 4, layers * 48, "identity", [norm]),
        f"{block}/down": ("dense", depth + 5, layers * 48, "identity", [gate, up]),
    }


DECODED = ["embedding", "block_0/attention/out", "block_0/down"]
DECODED_END = [*DECODED, "block_1/attention/out", "block_1/down"]

DECODER: Table = {
    "embedding": ("embedding", 0, 11 * 6, "identity", ["norm"]),  # tied: it reads out, too
    **gated_block("block_0", 1, layers=1, before=DECODED[:1], loop=[]),
    **gated_block("block_1", 7, layers=1, before=DECODED, loop=[]),
    "norm": ("normalization", 13, 6, "identity", DECODED_END),
}

LOOP = ["blocks/attention/out", "blocks/down"]

SCANNED_DECODER: Table = {
    "embedding": ("embedding", 0, 11 * 6, "identity", []),
    **gated_block("blocks", 1, layers=2, before=["embedding"], loop=LOOP),
    "head": ("dense", 7, 6 * 11 + 11, "identity", ["embedding", *LOOP]),
}

MIXER: Table = {
    "patches": ("conv", 0, 16 * 6 + 6, "identity", []),
    "block/norm_0": ("normalization", 1, 12, "identity", ["patches"]),
    "block/tokens_0": ("dense", 2, 4 * 5 + 5, "gelu", ["block/norm_0"]),
    "block/tokens_1": ("dense", 3, 5 * 4 + 4, "identity", ["block/tokens_0"]),
    "block/norm_1": ("normalization", 4, 12, "identity", ["patches", "block/tokens_1"]),
    "block/channels_0": ("dense", 5, 6 * 7 + 7, "gelu", ["block/norm_1"]),
    "block/channels_1": ("dense", 6, 7 * 6 + 6, "identity", ["block/channels_0"]),
    "norm": (
        "normalization",
        7,
        12,
        "identity",
        ["patches", "block/tokens_1", "block/channels_1"],
    ),
    "head": ("dense", 8, 6 * 3 + 3, "identity", ["norm"]),
}

UNET: Table = {
    "down_0": ("conv", 0, 9 * 3 * 2 + 2, "relu", []),
    "down_1": ("conv", 1, 9 * 2 * 4 + 4, "relu", ["down_0"]),
    "bottom": ("conv", 2, 9 * 4 * 8 + 8, "relu", ["down_1"]),
    "up_1": ("transposed_conv", 3, 4 * 8 * 4 + 4, "identity", ["bottom"]),
    "join_1": ("conv", 4, 9 * 8 * 4 + 4, "relu", ["down_1", "up_1"]),
    "up_0": ("transposed_conv", 5, 4 * 4 * 2 + 2, "identity", ["join_1"]),
    "join_0": ("conv", 6, 9 * 4 * 2 + 2, "relu", ["down_0", "up_0"]),
    "mask": ("conv", 7, 2 * 1 + 1, "identity", ["join_0"]),
}


def equinox_block(index: int, depth: int, before: list[str]) -> dict[str, Row]:
    block = f"blocks/{index}"
    stream = [*before, f"{block}/attention/output_proj"]
    return {
        f"{block}/norm_0": ("normalization", depth, 12, "identity", before),
        **attention(block, depth + 1, **EQUINOX),
        f"{block}/norm_1": ("normalization", depth + 3, 12, "identity", stream),
        f"{block}/expand": ("dense", depth + 4, 6 * 12 + 12, "gelu", [f"{block}/norm_1"]),
        f"{block}/project": ("dense", depth + 5, 12 * 6 + 6, "identity", [f"{block}/expand"]),
    }


EMBEDDED = ["embedding", "blocks/0/attention/output_proj", "blocks/0/project"]
EMBEDDED_END = [*EMBEDDED, "blocks/1/attention/output_proj", "blocks/1/project"]

EQUINOX_TRANSFORMER: Table = {
    "embedding": ("embedding", 0, 11 * 6, "identity", []),
    **equinox_block(0, 1, EMBEDDED[:1]),
    **equinox_block(1, 7, EMBEDDED),
    "head": ("dense", 13, 6 * 11 + 11, "identity", EMBEDDED_END),
}

needs_equinox = pytest.mark.skipif(
    importlib.util.find_spec("equinox") is None, reason="equinox is not installed"
)

ARCHITECTURES = {
    "mlp": (mlp, MLP),
    "resnet": (resnet, RESNET),
    "resnet in nnx": (nnx_resnet, RESNET),
    "vit": (vit, VIT),
    "decoder": (decoder, DECODER),
    "scanned decoder": (scanned_decoder, SCANNED_DECODER),
    "mixer": (mixer, MIXER),
    "unet": (unet, UNET),
    "unet in nnx": (nnx_unet, UNET),
    "transformer in equinox": (equinox_transformer, EQUINOX_TRANSFORMER),
}

each_architecture = pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(*case, id=name, marks=[needs_equinox] if "equinox" in name else [])
        for name, case in ARCHITECTURES.items()
    ],
)


@each_architecture
def test_layers_counts_activations_and_connections_are_those_of_the_code(
    make: Callable[[], Architecture], expected: Table
) -> None:
    model = make()
    made = table_of(model.blueprint)
    assert list(made) == list(expected)  # the order of the forward pass
    assert made == expected
    assert sum(row[2] for row in expected.values()) == model.parameter_count


@each_architecture
def test_layers_have_the_names_that_the_monitor_gives_them(
    make: Callable[[], Architecture], expected: Table
) -> None:
    assert set(expected) == set(layer_names(make().params))


@each_architecture
def test_a_generated_blueprint_can_be_stored_encoded_and_used_in_a_decision(
    make: Callable[[], Architecture], expected: Table, tmp_path: Path
) -> None:
    blueprint = make().blueprint
    assert blueprint_from_json(blueprint_to_json(blueprint)) == blueprint
    check_decision(blueprint, "heuristic", tmp_path)


@pytest.mark.slow  # compiles the network
def test_the_graph_policy_decides_upon_a_made_blueprint(tmp_path: Path) -> None:
    check_decision(decoder().blueprint, "graph", tmp_path)


def check_decision(blueprint: Blueprint, policy: str, directory: Path) -> None:
    library = make_library()
    library.put(blueprint)
    config = make_config()
    params = init_params(config.policy, jax.random.key(0))
    with open_tamiyo(
        directory, library=library, policy=policy, params=params, config=config
    ) as tamiyo:
        decision = tamiyo.step(make_packet(blueprint_id="model"))
    assert decision.coverage["edges.layer_connects"] == 1
    # Depth, size, type and activation; the other four features are measurements.
    assert decision.coverage["node.layer"] == 0.5


def test_channels_are_those_of_one_position() -> None:
    def channels(model: Architecture) -> dict[str, tuple[int | None, int | None]]:
        layers = model.blueprint.layers
        return {item.layer_id: (item.input_channels, item.output_channels) for item in layers}

    seen = channels(decoder())
    assert seen["embedding"] == (11, 6)
    assert seen["block_0/attention/query"] == (6, 6)
    assert seen["block_0/down"] == (8, 6)
    seen = channels(resnet())
    assert seen["block_1/shortcut"] == (4, 8)
    assert seen["block_1/norm_0"] == (8, 8)
    seen = channels(vit())
    assert seen["token"] == (None, 6)
    assert channels(unet())["up_1"] == (8, 4)


def test_activations_know_whom_they_follow_and_whom_they_feed() -> None:
    blueprint = decoder().blueprint
    names = [layer.layer_id for layer in blueprint.layers]
    ids = [activation.activation_id for activation in blueprint.activations]
    assert [activation.type for activation in blueprint.activations] == ["softmax", "silu"] * 2
    assert ids[:2] == ["block_0/attention/key/softmax", "block_0/gate/silu"]
    pairs = blueprint.relation_pairs
    follows = [
        (names[layer], ids[activation]) for layer, activation in pairs["layer__feeds__activation"]
    ]
    feeds = [
        (ids[activation], names[layer]) for activation, layer in pairs["activation__affects__layer"]
    ]
    assert ("block_0/attention/query", ids[0]) in follows
    assert ("block_0/attention/key", ids[0]) in follows
    assert ("block_0/gate", ids[1]) in follows
    assert feeds[:2] == [(ids[0], "block_0/attention/out"), (ids[1], "block_0/down")]
    assert pairs["layer__activates__activation"] == pairs["layer__feeds__activation"]


def dense(x: jax.Array, layer: Mapping[str, jax.Array]) -> jax.Array:
    return x @ layer["kernel"]


def square(size: int = 3) -> dict[str, jax.ShapeDtypeStruct]:
    return {"kernel": jax.ShapeDtypeStruct((size, size), jnp.float32)}


INPUT = jax.ShapeDtypeStruct((2, 3), jnp.float32)


def describe(
    apply_fn: Callable[[Any, Any], Any], *layers: str, example: Any = INPUT, **more: Any
) -> dict[str, Row]:
    params = {**{name: square() for name in layers}, **more}
    return table_of(Architecture(params, apply_fn, example).blueprint)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (jax.nn.relu, "relu"),
        (lambda x: jnp.maximum(x, 0.0), "relu"),
        (lambda x: jax.nn.gelu(x, approximate=True), "gelu"),
        (lambda x: jax.nn.gelu(x, approximate=False), "gelu"),
        (jnp.tanh, "tanh"),
        (jax.nn.sigmoid, "sigmoid"),
        (jax.nn.silu, "silu"),
        (jax.nn.softmax, "softmax"),
        (lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x), axis=-1, keepdims=True), "softmax"),
        (jax.nn.elu, "elu"),
        (jax.nn.leaky_relu, "leaky_relu"),
        (jax.nn.softplus, "softplus"),
        (jax.nn.mish, "mish"),
        (jax.checkpoint(jax.nn.relu), "relu"),
        (jax.nn.standardize, "identity"),
        (lambda x: 2.0 * x, "identity"),
    ],
)
def test_an_activation_is_recognised_however_it_is_written(
    function: Callable[[jax.Array], jax.Array], name: str
) -> None:
    made = describe(lambda p, x: dense(function(dense(x, p["a"])), p["b"]), "a", "b")
    assert made["a"] == ("dense", 0, 9, name, [])
    assert made["b"] == ("dense", 1, 9, "identity", ["a"])


def test_squeeze_and_excitation_feeds_on_by_both_ways() -> None:
    def apply_fn(params: Any, x: Any) -> Any:
        x = dense(x, params["a"])
        x = x * jax.nn.sigmoid(dense(jnp.mean(x, axis=0, keepdims=True), params["gate"]))
        return dense(x, params["b"])

    assert describe(apply_fn, "a", "gate", "b")["b"][-1] == ["a", "gate"]


def test_depthwise_and_pointwise_convolutions_are_distinguished() -> None:
    class Separable(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), feature_group_count=4, name="depthwise")(x)
            return nn.Conv(6, (1, 1), name="pointwise")(x)

    example = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)
    layers = linen(Separable(), example).blueprint.layers
    assert [(item.type, item.input_channels, item.output_channels) for item in layers] == [
        ("depthwise_conv", 4, 4),
        ("conv", 4, 6),
    ]


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm,
        nn.RMSNorm,
        partial(nn.GroupNorm, 2),
        partial(nn.BatchNorm, use_running_average=True),
    ],
    ids=["layer", "rms", "group", "batch"],
)
def test_a_normalisation_lies_between_its_neighbours(norm: Callable[..., nn.Module]) -> None:
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="b")(norm(name="norm")(nn.Dense(4, name="a")(x)))

    made = table_of(linen(Normalised(), INPUT).blueprint)
    assert made["norm"][0] == "normalization"
    assert (made["norm"][-1], made["b"][-1]) == (["a"], ["norm"])


def test_batch_statistics_and_dropout_of_training_change_nothing() -> None:
    class Net(nn.Module):
        train: bool

        @nn.compact
        def __call__(self, x):
            x = nn.Dense(4, name="a")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not self.train, name="norm")(x))
            x = nn.Dropout(0.5, deterministic=not self.train)(x)
            return nn.Dense(3, name="b")(x)

    quiet = linen(Net(train=False), INPUT)
    variables = jax.jit(Net(train=False).init)(jax.random.key(0), jnp.zeros((2, 3)))

    def training(params: Any, x: Any) -> Any:
        return Net(train=True).apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            x,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )

    loud = quiet._replace(apply_fn=training)
    assert loud.blueprint == quiet.blueprint


def test_a_recurrent_network_is_fed_by_the_step_before() -> None:
    example = jax.ShapeDtypeStruct((2, 5, 3), jnp.float32)
    assert table_of(linen(nn.RNN(nn.SimpleCell(4)), example).blueprint) == {
        "cell/i": ("dense", 0, 3 * 4 + 4, "tanh", []),
        "cell/h": ("dense", 0, 4 * 4, "tanh", ["cell/i"]),
    }


def test_loops_and_branches_are_followed() -> None:
    def apply_fn(params: Any, x: Any) -> Any:
        def step(_: int, h: jax.Array) -> jax.Array:
            return dense(jnp.tanh(dense(h, params["b"])), params["c"])

        x = jax.lax.fori_loop(0, 3, step, x)
        return jax.lax.cond(
            jnp.sum(x) > 0, lambda h: dense(h, params["d"]), lambda h: dense(h, params["e"]), x
        )

    made = describe(apply_fn, "b", "c", "d", "e")
    assert made == {
        "b": ("dense", 0, 9, "tanh", ["c"]),
        "c": ("dense", 1, 9, "identity", ["b"]),
        "d": ("dense", 2, 9, "identity", ["c"]),
        "e": ("dense", 2, 9, "identity", ["c"]),
    }


def test_parameters_that_are_not_reached_are_listed_and_lead_nowhere() -> None:
    made = describe(lambda p, x: dense(x, p["used"]), "aside", "used")
    assert list(made.items()) == [
        ("used", ("dense", 0, 9, "identity", [])),
        ("aside", ("unused", 0, 9, "identity", [])),
    ]


def test_a_parameter_that_is_an_output_is_an_input_that_was_learned() -> None:
    spread = {"value": jax.ShapeDtypeStruct((3,), jnp.float32)}
    made = describe(lambda p, x: (dense(x, p["mean"]), p["spread"]["value"]), "mean", spread=spread)
    assert made["spread"] == ("learned_input", 0, 3, "identity", [])


def test_boxed_parameters_have_no_level_of_their_own() -> None:
    class Sharded(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
            return nn.Dense(4, kernel_init=init, name="dense")(x)

    model = linen(Sharded(), INPUT)
    assert table_of(model.blueprint) == {"dense": ("dense", 0, 16, "identity", [])}
    assert layer_names(model.params) == ("dense",)


def test_the_demonstration_host_is_described_as_it_was_by_hand() -> None:
    pytest.importorskip("sklearn")
    task = digits_task(0)
    gates = {name: Gate(jnp.float32(0)) for name in task.slot_depths}
    seeds = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(task.host.init_seeds, jax.random.key(0)),
    )
    made = blueprint_of(
        jax.eval_shape(task.init_params, jax.random.key(0)),
        lambda params, x: task.logits(params, seeds, gates, x),
        jax.ShapeDtypeStruct((1, task.train.inputs.shape[1]), jnp.float32),
        blueprint_id="digits-host",
        risk=0.1,
    )
    assert made.layers == tuple(replace(item, dropout_rate=None) for item in task.blueprint.layers)
    assert task.blueprint.chain
    assert made.layer_edges == tuple(LayerEdge(i, i + 1) for i in range(len(made.layers) - 1))


@st.composite
def networks(draw: st.DrawFn) -> list[tuple[tuple[int, ...], str, str]]:
    """Layers: whose outputs each takes, how they are joined, and what follows it."""
    count = draw(st.integers(1, 8))
    return [
        (
            tuple(sorted(draw(st.sets(st.integers(0, i - 1), min_size=1)))) if i else (),
            draw(st.sampled_from(["sum", "product", "concatenation", "maximum"])),
            draw(st.sampled_from(["identity", "relu", "tanh", "gelu", "silu"])),
        )
        for i in range(count)
    ]


FUNCTIONS = {
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
}


def join(how: str, values: list[jax.Array]) -> jax.Array:
    if how == "concatenation":
        return jnp.concatenate(values, axis=-1)
    operations = {"sum": jnp.add, "product": jnp.multiply, "maximum": jnp.maximum}
    whole = values[0]
    for value in values[1:]:
        whole = operations[how](whole, value)
    return whole


@pytest.mark.slow
@given(network=networks(), normalised=st.booleans(), jitted=st.booleans())
@settings(max_examples=100)
def test_any_network_is_recovered(
    network: list[tuple[tuple[int, ...], str, str]], normalised: bool, jitted: bool
) -> None:
    names = [f"layer-{index}" for index in range(len(network))]

    def layer(params: Any, x: Any) -> Any:
        if normalised:  # in the layer, by a scale of its own as RMS normalisation has it
            x = x * (jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True)) * params["scale"][None])
        return x @ params["kernel"] + params["bias"][None]

    apply_layer = jax.jit(layer) if jitted else layer
    sizes = [
        3 * len(sources) if how == "concatenation" and sources else 3 for sources, how, _ in network
    ]
    params = {
        name: {
            "kernel": jax.ShapeDtypeStruct((size, 3), jnp.float32),
            "bias": jax.ShapeDtypeStruct((3,), jnp.float32),
            **({"scale": jax.ShapeDtypeStruct((size,), jnp.float32)} if normalised else {}),
        }
        for name, size in zip(names, sizes, strict=True)
    }

    def apply_fn(params: Any, x: Any) -> Any:
        outputs: list[jax.Array] = []
        for name, (sources, how, function) in zip(names, network, strict=True):
            taken = join(how, [outputs[i] for i in sources]) if sources else x
            outputs.append(FUNCTIONS[function](apply_layer(params[name], taken)))
        return outputs

    depth: list[int] = []
    for sources, _, _ in network:
        depth.append(max((depth[i] + 1 for i in sources), default=0))
    assert table_of(Architecture(params, apply_fn, INPUT).blueprint) == {
        name: (
            "dense",
            depth[index],
            sizes[index] * 3 + 3 + sizes[index] * normalised,
            function,
            [names[i] for i in sources],
        )
        for index, (name, (sources, _, function)) in enumerate(zip(names, network, strict=True))
    }


def test_the_model_is_not_run() -> None:
    ran: list[bool] = []

    def apply_fn(params: Any, x: Any) -> Any:
        jax.debug.callback(lambda: ran.append(True))
        return dense(x, params["a"])

    ones = {"a": {"kernel": jnp.ones((3, 3), jnp.float32)}}
    blueprint_of(ones, apply_fn, jnp.ones((2, 3), jnp.float32), blueprint_id="model", risk=0.1)
    jax.effects_barrier()
    assert ran == []


def test_the_page_shows_what_its_example_gives() -> None:
    page = (Path(__file__).parents[2] / "docs" / "blueprint_of.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    blueprint: Blueprint = names["blueprint"]
    for layer, row in zip(blueprint.layers, table_of(blueprint).values(), strict=True):
        kind, depth, count, activation, sources = row
        channels = f"{layer.input_channels} → {layer.output_channels}"
        cells = [f"`{layer.layer_id}`", kind, depth, activation, count, channels]
        taken = ", ".join(f"`{name}`" for name in sources)
        assert " | ".join(map(str, ["|", *cells, taken]))[2:] in page


def test_what_is_no_array_is_named() -> None:
    with pytest.raises(ConfigurationError, match="holds no array"):
        blueprint_of({}, lambda p, x: x, INPUT, blueprint_id="model", risk=0.1)
    with pytest.raises(ConfigurationError, match="function in 'block'") as caught:
        blueprint_of(
            {"block": {"activation": dense}}, lambda p, x: x, INPUT, blueprint_id="model", risk=0.1
        )
    assert caught.value.layer == "block"
