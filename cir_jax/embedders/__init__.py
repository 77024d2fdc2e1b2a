# SPDX-License-Identifier: Apache-2.0
"""Embedders of others, behind a server or in a folder: images and texts in, vectors out, kept."""
