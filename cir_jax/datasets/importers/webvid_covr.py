# SPDX-License-Identifier: Apache-2.0
"""WebVid-CoVR (arXiv 2308.14746): 1.6 million triplets of videos, a frame standing for each.

    CSV with the columns txt1, txt2 (captions), edit (the text), pth1, pth2 (videos), and others

The columns are those that the authors' loader reads (lucas-ventura/CoVR); further ones (scores per
frame, similarities) are not kept. A video is named "folder/id", its file being "folder/id.mp4";
frames are images that you extract, so the suffix says what yours are called: suffix ".jpg" for
"folder/id.jpg", "/middle.jpg" for "folder/id/middle.jpg". The loader of CC-CoIR (images) reads the
same columns. Of a folder, only the training split is taken.
"""

from collections.abc import Mapping
from typing import Any

from cir_jax.datasets import importer

HELP = "WebVid-CoVR and CC-CoIR: txt1, txt2, edit, pth1, pth2"
PATTERNS = ("*_train.csv", "*_train.csv.gz")
KEYS = (("pth1", "pth2", "edit"),)
_VIDEO = ".mp4"


def convert(record: Mapping[str, Any]) -> dict[str, Any]:
    """The neutral record of one row."""
    reference = importer.image(record, "pth1", importer.NO_REFERENCE).removesuffix(_VIDEO)
    target = importer.image(record, "pth2", importer.NO_TARGET).removesuffix(_VIDEO)
    meta = {"caption1": record.get("txt1"), "caption2": record.get("txt2")}
    return importer.neutral(reference, target, importer.texts(record, "edit"), meta)
