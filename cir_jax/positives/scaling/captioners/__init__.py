# SPDX-License-Identifier: Apache-2.0
"""What writes captions and rewrites texts: plug-ins, found by file name; see `contract`."""
