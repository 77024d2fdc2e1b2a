# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: rankings, metrics, protocols and the report."""
