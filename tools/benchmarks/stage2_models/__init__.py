# SPDX-License-Identifier: Apache-2.0
"""The released steps of stage two, one module per model: see contract.py."""
