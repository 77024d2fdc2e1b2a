# SPDX-License-Identifier: Apache-2.0
"""Weights of PyTorch projects, in and out: the engine. Towers and models hold the rules."""
