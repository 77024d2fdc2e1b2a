# SPDX-License-Identifier: Apache-2.0
"""The cluster: processes, mesh, sharding, optimizer, checkpoints and metrics."""
