# SPDX-License-Identifier: Apache-2.0
"""The report of a run: sections, figures, pictures, and the page they make."""
