# SPDX-License-Identifier: Apache-2.0
"""Readers, plug-ins found by name: one module per layout of a data set."""
