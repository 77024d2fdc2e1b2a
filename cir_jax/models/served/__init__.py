# SPDX-License-Identifier: Apache-2.0
"""An embedder of others behind a server, or in a folder of sentence-transformers, as a model."""

from cir_jax.models.served.model import (
    CUT_PADDING,
    PLAIN,
    REFERENCE_ROWS,
    TOKENIZER,
    Model,
    embedder,
    image_size,
    roles,
    sharding,
)

KEYS = {
    "url": ("", "address of an OpenAI-style embeddings server, whose name of the model is "
            "model.tower; '' = model.tower is a folder of sentence-transformers", None),
    "form": ("messages", "how requests are written: messages (vLLM, cir-jax serve), contents "
             "(cir-jax serve), fields (SGLang), jina, modality (Infinity)",
             ("messages", "contents", "fields", "jina", "modality")),
    "composition": ("server", "what makes a query of image and text: the server, which gets both "
                    "in one input, or their sum here", ("server", "sum")),
    "prompts": ("none", "what the model is told around images and texts: a name of "
                "cir_jax/embedders/prompts.py, or a .json file", None),
    "width": (0, "values of a vector; 0 = what the server says", "[0, 65536]"),
    "dimensions": (0, "values to ask for, of a model that can give fewer; 0 = all", "[0, 65536]"),
    "hidden": (512, "width of the inner layer of the head that trains", "[1, 65536]"),
    "max_side": (0, "larger images are sent this long, in pixels; 0 = as they are", "[0, 65536]"),
    "per_request": (16, "inputs of a request, where a form has several", "[1, 2048]"),
    "concurrency": (8, "requests under way at a time", "[1, 1000]"),
    "per_minute": (0.0, "requests started per minute; 0 = no limit", "[0, 1e6]"),
    "timeout": (120.0, "seconds to wait for one reply", "(0, 1e6]"),
    "wait": (600.0, "give up after so many seconds without any reply", "[0, 1e9]"),
    "key_variable": ("OPENAI_API_KEY", "environment variable that holds the key, if any", None),
    "cache": ("", "folder of the vectors that were asked for; '' = below CIR_JAX_CACHE", "path"),
}  # fmt: skip

__all__ = [
    "CUT_PADDING",
    "KEYS",
    "PLAIN",
    "REFERENCE_ROWS",
    "TOKENIZER",
    "Model",
    "embedder",
    "image_size",
    "roles",
    "sharding",
]
