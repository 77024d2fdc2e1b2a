# SPDX-License-Identifier: Apache-2.0
"""The small models that benchmarks are tested with."""

from tests.evals.conftest import tiny

__all__ = ["tiny"]
