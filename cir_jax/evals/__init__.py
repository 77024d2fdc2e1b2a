# SPDX-License-Identifier: Apache-2.0
"""Benchmarks, metrics and reports."""
