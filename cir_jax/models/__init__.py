# SPDX-License-Identifier: Apache-2.0
"""Composed image retrieval models, one file each, found by file name."""
