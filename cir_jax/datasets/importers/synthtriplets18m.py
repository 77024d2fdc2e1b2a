# SPDX-License-Identifier: Apache-2.0
"""SynthTriplets18M (arXiv 2303.11916): 18.8 million triplets of generated images.

The authors serve it in webdataset form, tar shards with images in them (navervision/CompoDiff,
issue 3). What a sample's members are called is not published, so nothing is guessed: you say which
field is which, and without that the error lists the fields of the first record.

    reference=FIELD target=FIELD text=FIELD     e.g. reference=src.jpg target=tgt.jpg text=json.edit

A field of a tar sample is a member's name behind its first dot; a dot goes on into JSON members and
into columns of parquet files, which are read too. An image in an uncompressed shard is used where
it lies, by `reference_path` and `target_path`: nothing is extracted.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from cir_jax.datasets import importer
from cir_jax.errors import UserError

HELP = "SynthTriplets18M, and any tar, parquet, CSV or JSON whose fields you name"
PATTERNS = ("*.tar", "*.tar.gz", "*.parquet")
KEYS = ()
OPTIONS = {
    "reference": "field of the reference image",
    "target": "field of the target image",
    "text": "field of the text or texts",
}


def convert(
    record: Mapping[str, Any], reference: str = "", target: str = "", text: str = ""
) -> dict[str, Any]:
    """The neutral record of one sample.

    Raises:
      UserError: one of the fields is not named.
    """
    fields = dict(_flat(record))
    if not (reference and target and text):
        raise UserError(
            "say which field is which: reference=FIELD, target=FIELD and text=FIELD (--set). The "
            f"first record has: {', '.join(fields) or 'none'}"
        )
    return importer.neutral(
        importer.image(fields, reference, importer.NO_REFERENCE),
        importer.image(fields, target, importer.NO_TARGET),
        importer.texts(fields, text),
        {},
    )


def _flat(record: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
