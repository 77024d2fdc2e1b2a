# SPDX-License-Identifier: Apache-2.0
"""CIRCO and GeneCIS in their official layouts, tiny."""

import random

from tests import runs

COLORS = list(runs.COLORS.values())


def write_circo(root, images=16, queries=6):
    """A CIRCO folder: images 100, 101, ..., and the splits val and test with `queries` each."""
    rng = random.Random(2)
    numbers = list(range(100, 100 + images))
    folder = root / "COCO2017_unlabeled"
    for i, number in enumerate(numbers):
        runs.write_image(folder / "unlabeled2017" / f"{number:012d}.jpg", COLORS[i % 4], i)
    listed = [{"id": n, "file_name": f"{n:012d}.jpg", "license": 1} for n in numbers]
    runs.dump(folder / "annotations/image_info_unlabeled2017.json", {"images": listed})
    for split in ("val", "test"):
        records = []
        for number in range(queries):
            reference, *truths = rng.sample(numbers, 2 + number % 3)
            record = {
                "reference_img_id": reference,
                "relative_caption": f"has {number} dogs",
                "shared_concept": "a house",
                "id": number,
            }
            answers = {
                "target_img_id": truths[0],
                "gt_img_ids": truths,
                "semantic_aspects": ["cardinality", "negation"][: 1 + number % 2],
            }
            records.append(record | answers if split == "val" else record)
        runs.dump(root / "annotations" / f"{split}.json", records)
    return root


def write_genecis(root, images=10, queries=5, others=3):
    """A GeneCIS folder of four tasks; every gallery has `others` images beside the target."""
    rng = random.Random(3)
    for i in range(images):
        runs.write_image(root / "VG_100K_all" / f"{20 + i}.jpg", COLORS[i % 4], i, (40, 30))
        runs.write_image(root / "val2017" / f"{50 + i:012d}.jpg", COLORS[i % 4], i)
    whole = [{"val_image_id": 50 + i} for i in range(images)]
    parts = [
        {"image_id": 20 + i, "instance_bbox": [2 + 15 * j, 3, 12, 20]}
        for i in range(images)
        for j in range(2)
    ]
    for task in ("focus_attribute", "change_attribute", "focus_object", "change_object"):
        items = parts if task.endswith("attribute") else whole
        records = []
        for _ in range(queries):
            reference, target, *gallery = rng.sample(items, 2 + others)
            condition = rng.choice(list(runs.COLORS))
            records.append(
                {
                    "reference": reference,
                    "target": target,
                    "condition": condition,
                    "gallery": gallery,
                }
            )
        runs.dump(root / "genecis" / f"{task}.json", records)
    return root
