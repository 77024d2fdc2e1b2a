# SPDX-License-Identifier: Apache-2.0
"""Losses as pure functions: in-batch, in-bank, sampled negatives, types of negatives, scores."""
