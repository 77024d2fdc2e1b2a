# SPDX-License-Identifier: Apache-2.0
"""BLIP: its text encoder, sizes and weights."""
