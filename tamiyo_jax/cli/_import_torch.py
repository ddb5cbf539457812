"""`tamiyo-jax import-torch`: convert parameters of PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tamiyo_jax.cli._files import MIB, check_file
from tamiyo_jax.cli._output import print_lines

__all__ = ["import_torch"]


def import_torch(
    file: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            callback=check_file(8 * 1024 * MIB),
            help="A state dict, .npz or .safetensors.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="File to write, safetensors.")] = Path(
        "policy.safetensors"
    ),
) -> None:
    """Convert a PyTorch state dict of the policy network to safetensors.

    Example: tamiyo-jax import-torch policy.npz --output policy.safetensors
    """
    from tamiyo_jax.policy import export_params, import_state_dict, load_state_dict

    config, params = import_state_dict(load_state_dict(file))
    export_params(params, output)
    print_lines(f"{output}: widths {config.sage_width}/{config.gat_width}, {config.heads} heads")
