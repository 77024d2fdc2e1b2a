# SPDX-License-Identifier: Apache-2.0
"""Triplet sets of other projects, read record by record and rewritten as neutral JSON lines.

A format is one module here, or a Python file of yours; `contract` says what it must define.
"""
