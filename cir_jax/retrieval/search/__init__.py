# SPDX-License-Identifier: Apache-2.0
"""A question about an index, as scores that a store ranks, and its answer."""
