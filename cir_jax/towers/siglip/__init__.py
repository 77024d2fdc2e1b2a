# SPDX-License-Identifier: Apache-2.0
"""SigLIP and SigLIP 2: two towers, learned by a sigmoid loss."""
