# SPDX-License-Identifier: Apache-2.0
"""An index beyond one machine: its rows once more in a collection of Milvus or Milvus Lite.

The folder of the index stays the truth: rows, names and fields. A collection finds candidates; they
are scored from the folder (`cir_jax.retrieval.scoring`), so that a score is the same to the last
bit with every store. What is lost or half written in Milvus is filled up from the folder.
"""
