# SPDX-License-Identifier: Apache-2.0
"""Importers, plug-ins found by name: one module per format of another project's triplets."""
