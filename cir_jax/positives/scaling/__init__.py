# SPDX-License-Identifier: Apache-2.0
"""More positives from images alone: dedupe, caption, pair, modify, with a file between each two."""
