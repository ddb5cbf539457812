"""What a server grants a run, so that no run can harm another."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server grants each run, and how fast another server may take over.

    Attributes:
      entry_bytes: size of a packet's entry beyond which it is refused.
      packets_per_s: packets of a run per second; those beyond it are refused.
      entries_per_round: entries of a run that are read before it is the others' turn.
      runs: runs that a server decides for at once.
      lease_s: seconds without a heartbeat after which a server's runs go to another.
      round_s: seconds that a round may take, as when a layout is new and is compiled, before
        the server counts as dead.
      idle_s: seconds without an entry after which a run is put away; its state is kept.
      kept_s: seconds for which the state of a run that was put away is kept.
    """

    entry_bytes: int = 256 << 10
    packets_per_s: float = 20.0
    entries_per_round: int = 4
    runs: int = 1_000
    lease_s: float = 3.0
    round_s: float = 120.0
    idle_s: float = 600.0
    kept_s: float = 7 * 86_400.0
