# SPDX-License-Identifier: Apache-2.0
"""BLIP-2: its Q-Former, sizes and weights."""
