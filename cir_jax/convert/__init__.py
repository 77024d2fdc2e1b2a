# SPDX-License-Identifier: Apache-2.0
"""Weights of PyTorch projects <-> ours: strict tables, both directions; torch is not needed."""
