# SPDX-License-Identifier: Apache-2.0
"""What matches: triplets, the image table, and the readers of every data set."""
