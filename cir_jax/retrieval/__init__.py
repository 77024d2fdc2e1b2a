# SPDX-License-Identifier: Apache-2.0
"""A model on your images: encode, compose, rank."""
