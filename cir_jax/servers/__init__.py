# SPDX-License-Identifier: Apache-2.0
"""Requests to servers of others, which may be slow, away or wrong: retries, limits, pictures."""
