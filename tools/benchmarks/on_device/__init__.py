# SPDX-License-Identifier: Apache-2.0
"""The parts of `bench.py accelerator`: what is measured on one GPU or TPU, and how."""
