# SPDX-License-Identifier: Apache-2.0
"""The HTML report of a run or an evaluation: what it contains, and how it is drawn."""
