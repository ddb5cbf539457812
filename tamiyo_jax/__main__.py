"""``python -m tamiyo_jax`` is the `tamiyo-jax` command."""

from tamiyo_jax.cli import main

main()
