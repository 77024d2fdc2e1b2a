# SPDX-License-Identifier: Apache-2.0
"""How long processes wait for each other: the keys `cluster.*` of a config."""

from dataclasses import dataclass

from ml_collections import ConfigDict


@dataclass(frozen=True)
class Limits:
    """In seconds; see configs/base.py.

    Attributes:
      connect: `cluster.connect_seconds`.
      lost: `cluster.lost_seconds`.
      stuck: `cluster.stuck_seconds`; 0 for no limit.
      compiling: `cluster.compile_seconds`; 0 for no limit.
      grace: `checkpoint.grace_seconds`.
    """

    connect: float = 300.0
    lost: float = 90.0
    stuck: float = 1800.0
    compiling: float = 3600.0
    grace: float = 25.0

    @classmethod
    def of(cls, config: ConfigDict) -> "Limits":
        """Those of a config."""
        section = config.cluster
        return cls(
            section.connect_seconds,
            section.lost_seconds,
            section.stuck_seconds,
            section.compile_seconds,
            config.checkpoint.grace_seconds,
        )

    @property
    def period(self) -> float:
        """Between two heartbeats."""
        return min(1.0, self.lost / 10)
