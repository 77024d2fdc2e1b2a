# SPDX-License-Identifier: Apache-2.0
"""The page of the server: a document, its styles and its modules, served as they lie here."""
