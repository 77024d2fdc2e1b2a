# SPDX-License-Identifier: Apache-2.0
"""EmbeddingGemma 2: its image encoder, its encoder of image and text tokens, sizes and weights."""
