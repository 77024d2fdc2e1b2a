# SPDX-License-Identifier: Apache-2.0
"""Encoders that models are made of. None of them knows what composed image retrieval is."""
