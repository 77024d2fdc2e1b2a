# SPDX-License-Identifier: Apache-2.0
"""File formats of weights, read and written tensor by tensor: torch's archives and safetensors."""
