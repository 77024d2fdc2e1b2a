# SPDX-License-Identifier: Apache-2.0
"""How files of other projects are read record by record and written as neutral JSON lines."""
