# SPDX-License-Identifier: Apache-2.0
"""The two encoders of TIPSv2."""
