# SPDX-License-Identifier: Apache-2.0
"""Configs: `base` holds every key with its meaning, each other file is one model's paper."""
