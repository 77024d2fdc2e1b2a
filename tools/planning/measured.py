# SPDX-License-Identifier: Apache-2.0
"""The table "predicted against measured": one line for each number that a real run gave."""

import csv
import dataclasses
import datetime
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cir_jax import files
from cir_jax.errors import UserError
from tools.planning.analysis import Plan

TABLE = Path(__file__).with_name("measured.csv")
# What can be measured -> the same number of a plan.
KINDS = {
    "step_seconds": lambda plan: plan.floors.slowest,
    "step_bytes": lambda plan: plan.memory.step,
    "evaluation_bytes": lambda plan: plan.memory.evaluation,
    "run_seconds": lambda plan: plan.seconds,
}


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
      date: of the measurement, "2026-11-29".
      config: of the run, with its changes.
      on: the machine.
      what: a key of KINDS.
      predicted: by the plan, seconds or bytes.
      measured: on the machine, likewise.
      versions: of jax, and of what else the number depends on.
    """

    date: str
    config: str
    on: str
    what: str
    predicted: float
    measured: float
    versions: str


FIELDS = tuple(field.name for field in dataclasses.fields(Row))


def read(table: Path = TABLE) -> list[Row]:
    """All rows of the table.

    Raises:
      UserError: it is not such a table.
    """
    try:
        with open(table, newline="") as file:
            found = csv.DictReader(file)
            if tuple(found.fieldnames or ()) != FIELDS:
                raise UserError(
                    f"{table} has the columns {found.fieldnames}, expected {', '.join(FIELDS)}"
                )
            return [
                Row(**(r | {k: float(r[k]) for k in ("predicted", "measured")}))  # type: ignore
                for r in found
            ]
    except FileNotFoundError:
        return []
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{table} has a row that is not complete ({error}); correct it") from None


def of(plan: Plan, rows: Iterable[Row]) -> list[Row]:
    """The rows of the same config on the same machine."""
    return [row for row in rows if (row.config, row.on) == (name(plan), plan.machine.on)]


def name(plan: Plan) -> str:
    """A config with its changes, as in the table."""
    return " ".join((plan.spec, *plan.changes))


def parse(values: Sequence[str]) -> list[tuple[str, float]]:
    """[(key of KINDS, number)] of "step_seconds=0.21" strings.

    Raises:
      UserError: what is measured has no number in a plan, or is no number above 0.
    """
    found = []
    for item in values:
        what, _, number = item.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if what not in KINDS or not 0 < value < float("inf"):
            raise UserError(
                f"--measured {item}: write one of {', '.join(KINDS)}, an equals sign and a number "
                "above 0, in seconds or bytes"
            )
        found.append((what, value))
    return found


def add(
    plan: Plan, values: Sequence[tuple[str, float]], versions: str, table: Path = TABLE
) -> list[Row]:
    """Adds rows to the table and returns them.

    Args:
      plan: of what was measured.
      values: see `parse`.
      versions: see `Row`.
      table: a CSV file.

    Raises:
      UserError: see `read`, or there is no room on the disk.
    """
    day = datetime.date.today().isoformat()
    new = [
        Row(
            *(day, name(plan), plan.machine.on, what),
            *(float(f"{KINDS[what](plan):.6g}"), value, versions),
        )
        for what, value in values
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(dataclasses.asdict, [*read(table), *new]))
    with files.whole(table) as file:
        file.write(text.getvalue().encode())
    return new
