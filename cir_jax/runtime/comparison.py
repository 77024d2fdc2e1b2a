# SPDX-License-Identifier: Apache-2.0
"""Compares over all processes what has to be the same on each, before anything depends on it."""

import json

import jax

from cir_jax.errors import UserError
from cir_jax.runtime import distributed
from cir_jax.runtime.cluster import ROOT

SHOWN = 5  # differences in a message


def check(what: str, parts: dict[str, str]) -> None:
    """Returns when all processes have given the same `parts`.

    Args:
      what: names the comparison; once per run.
      parts: what is compared: name -> value, short enough to be shown.

    Raises:
      UserError: this process differs from process 0, or another one does.
    """
    if jax.process_count() == 1:
        return
    cluster = distributed.join()
    assert cluster is not None
    client = distributed.client()
    folder = f"{ROOT}same/{what}"
    if cluster.process == 0:
        mine = json.dumps({"host": cluster.host, "parts": parts})
        client.key_value_set(f"{folder}/parts", mine)
    first = json.loads(cluster.get(f"{folder}/parts"))
    problem = _difference(parts, first["parts"])
    if problem:
        text = (
            f"process {cluster.process} on {cluster.host} differs from process 0 on "
            f"{first['host']}: {problem}. Give all processes the same, then start again"
        )
        cluster.end("failed", text, 2, wait=5.0)
        raise UserError(text)
    client.key_value_set(f"{folder}/of/{cluster.process}", "")
    if cluster.process == 0:
        for other in range(1, cluster.count):
            cluster.get(f"{folder}/of/{other}")
        client.key_value_set(f"{folder}/all", "")
    cluster.get(f"{folder}/all")


def _difference(mine: dict[str, str], theirs: dict[str, str]) -> str:
    """The first few parts that differ, or "" if none does."""
    found = [
        f"{name}: {mine.get(name, 'none')} instead of {theirs.get(name, 'none')}"
        for name in sorted({*mine, *theirs})
        if mine.get(name) != theirs.get(name)
    ]
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more
