# SPDX-License-Identifier: Apache-2.0
"""Scaling positives: triplets from images alone, by dedupe, caption, pair and modify."""
