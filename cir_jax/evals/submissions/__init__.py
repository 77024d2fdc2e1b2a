# SPDX-License-Identifier: Apache-2.0
"""The files that the test servers of CIRR and CIRCO take: one module per server."""
