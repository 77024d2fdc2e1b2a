# SPDX-License-Identifier: Apache-2.0
"""Captioners, plug-ins found by name: who writes a text about an image."""
