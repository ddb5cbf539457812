"""`tamiyo-jax import-torch`: parameters from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tamiyo_jax.cli.output import console

__all__ = ["import_torch"]


def import_torch(
    file: Annotated[Path, typer.Argument(help="A state dict, .npz or .safetensors.")],
    output: Annotated[Path, typer.Option(help="Where to write our parameters.")] = Path(
        "policy.safetensors"
    ),
) -> None:
    """Turn a PyTorch state dict of the policy network into our parameters.

    Example: tamiyo-jax import-torch policy.npz --output policy.safetensors
    """
    from tamiyo_jax.policy import export_params, import_state_dict, load_state_dict

    config, params = import_state_dict(load_state_dict(file))
    export_params(params, output)
    console.print(f"{output}: widths {config.sage_width}/{config.gat_width}, {config.heads} heads")
