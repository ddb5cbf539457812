"""The schema of edges: the one table of relations between node types, and the schema's digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from tamiyo_jax.errors import GraphSchemaError
from tamiyo_jax.graph._schema import NODE_TYPES, SCHEMA_VERSION, STATISTICS

__all__ = ["EDGE_WIDTH", "RELATIONS", "Relation", "Term", "find_relation", "schema_digest"]

EDGE_WIDTH = 3


@dataclass(frozen=True, slots=True)
class Term:
    """One edge attribute of a complete relation: a constant, or an attribute of one end."""

    end: Literal["constant", "source", "target"]
    attribute: int = 0
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Relation:
    """A relation between two node types.

    Attributes:
      source: node type of the senders.
      name: the verb.
      target: node type of the receivers.
      terms: the three attributes of a relation that is complete by construction; None
        where edges are listed by data.
      active: the end, if any, that is the active blueprint alone.
    """

    source: str
    name: str
    target: str
    terms: tuple[Term, Term, Term] | None = None
    active: Literal["source", "target"] | None = None

    @property
    def key(self) -> str:
        """``source__name__target``, as in checkpoints and golden files."""
        return f"{self.source}__{self.name}__{self.target}"

    @property
    def complete(self) -> bool:
        """Whether every source meets every target unless a blueprint lists the pairs."""
        return self.terms is not None


def _attribute(end: Literal["source", "target"], kind: str, name: str) -> Term:
    (attributes,) = [node.attributes for node in NODE_TYPES if node.name == kind]
    return Term(end, attributes.index(name))


def _complete(
    source: str,
    name: str,
    target: str,
    *terms: str | float,
    active: Literal["source", "target"] | None = None,
) -> Relation:
    """A term is 1.0, or ``"<node type>.<attribute>"`` of whichever end has that type."""
    resolved: list[Term] = []
    for term in terms:
        if isinstance(term, str):
            kind, attribute = term.split(".")
            resolved.append(_attribute("source" if kind == source else "target", kind, attribute))
        else:
            resolved.append(Term("constant", value=term))
    first, second, third = resolved
    return Relation(source, name, target, (first, second, third), active)


RELATIONS: tuple[Relation, ...] = (
    _complete("global", "influences", "seed", 1.0, "seed.stage", "seed.risk"),
    _complete("seed", "reports", "global", 1.0, "seed.stage", "seed.risk"),
    _complete("global", "annotates", "blueprint", 1.0, "blueprint.stage", "blueprint.risk"),
    _complete("blueprint", "monitored_by", "global", 1.0, "blueprint.stage", "blueprint.risk"),
    Relation("seed", "peer", "seed"),
    _complete("global", "operates", "layer", 1.0, "layer.depth", "layer.risk"),
    _complete("layer", "feedback", "global", 1.0, "layer.depth", "layer.risk"),
    _complete("layer", "activates", "activation", "layer.depth", "activation.ratio", 1.0),
    _complete("activation", "affects", "layer", "layer.depth", "activation.ratio", 1.0),
    _complete("layer", "feeds", "activation", "layer.depth", "activation.ratio", 1.0),
    _complete("activation", "configures", "parameter", "activation.ratio", "parameter.ratio", 1.0),
    _complete("parameter", "modulates", "activation", "activation.ratio", "parameter.ratio", 1.0),
    Relation("seed", "allowed", "parameter"),
    Relation("parameter", "associated", "seed"),
    _complete(
        "blueprint", "composes", "layer", "blueprint.risk", "layer.depth", 1.0, active="source"
    ),
    _complete(
        "layer", "belongs_to", "blueprint", "blueprint.risk", "layer.depth", 1.0, active="target"
    ),
    _complete(
        "blueprint",
        "energizes",
        "activation",
        "blueprint.risk",
        "activation.ratio",
        1.0,
        active="source",
    ),
    _complete(
        "parameter",
        "targets",
        "blueprint",
        "parameter.ratio",
        "blueprint.risk",
        1.0,
        active="target",
    ),
    Relation("layer", "connects", "layer"),
    Relation("seed", "monitors", "layer"),
    Relation("layer", "monitored_by", "seed"),
)

_RELATIONS = {relation.key: relation for relation in RELATIONS}


def find_relation(key: str) -> Relation:
    """The relation of that key (``source__name__target``), or `GraphSchemaError`."""
    if key not in _RELATIONS:
        raise GraphSchemaError(f"relation {key!r} is not in the schema", name=key)
    return _RELATIONS[key]


def schema_digest() -> str:
    """SHA-256 over the tables, hexadecimal; part of every checkpoint."""
    text = repr((SCHEMA_VERSION, STATISTICS, NODE_TYPES, RELATIONS))
    return hashlib.sha256(text.encode()).hexdigest()
