# SPDX-License-Identifier: Apache-2.0
"""What does not match: scores, in-batch and bank losses, and the bank itself."""
