# SPDX-License-Identifier: Apache-2.0
"""CLIP: its encoders, sizes, weights and processor files."""
