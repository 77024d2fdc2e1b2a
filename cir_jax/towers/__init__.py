# SPDX-License-Identifier: Apache-2.0
"""Encoders by family: networks, sizes, and which tensor of PyTorch is which of their leaves."""
