# SPDX-License-Identifier: Apache-2.0
"""Bytes to batches: pixels, tokens and the input pipeline."""
