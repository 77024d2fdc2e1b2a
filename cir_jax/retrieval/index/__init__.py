# SPDX-License-Identifier: Apache-2.0
"""The index of a collection: every image encoded once, kept on disk, brought up to date."""
