# SPDX-License-Identifier: Apache-2.0
"""When: what each training stage trains, reads and minimises."""
