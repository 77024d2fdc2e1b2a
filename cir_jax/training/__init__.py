# SPDX-License-Identifier: Apache-2.0
"""Training: from a config to the parts of a run, to its loop, to one step."""
