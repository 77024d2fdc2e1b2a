# SPDX-License-Identifier: Apache-2.0
"""What `tools/fuzz.py` is made of: files that readers take, and ways to spoil them."""
