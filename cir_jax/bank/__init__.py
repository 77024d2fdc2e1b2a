# SPDX-License-Identifier: Apache-2.0
"""Scaling negatives: the static bank of every candidate, its files, and references beside it."""
