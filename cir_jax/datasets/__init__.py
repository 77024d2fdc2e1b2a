# SPDX-License-Identifier: Apache-2.0
"""Data sets: readers of the official layouts, importers, the doctor, and packing by TFDS."""
