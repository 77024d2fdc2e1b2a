# SPDX-License-Identifier: Apache-2.0
"""Evaluation: benchmarks, their metrics, the files for their test servers, and reports."""
