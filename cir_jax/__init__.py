# SPDX-License-Identifier: Apache-2.0
"""Composed image retrieval in JAX: train, evaluate and search with an image and a text."""

__version__ = "0.1.0"
