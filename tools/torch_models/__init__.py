# SPDX-License-Identifier: Apache-2.0
"""The published networks in PyTorch, and the same layers of ours beside them.

They exist to check a conversion, layer by layer: `clip` and `clip4cir` have the tensor names of the
published files, so those load strictly; `ours` steps through the encoders of this project under the
same layer names. Needs the extra `torch`.
"""
