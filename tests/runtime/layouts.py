# SPDX-License-Identifier: Apache-2.0
"""Run in a process that has libtpu (tools/slices.py): prints the meshes of machines as JSON."""

import json

from cir_jax.runtime import encode
from cir_jax.runtime import mesh as meshes
from tools import slices

MACHINES = (
    *("v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:16x16", "v6e:4x4", "v6e:8x8"),
    *("v5p:2x2x2", "v5p:2x2x4", "v5p:4x4x4", "v4:2x2x4", "tpu7x:2x2x2", "tpu7x:4x4x4"),
    *("2xv5e:4x4", "8xH100", "2x8xH100", "4x8xH100"),
)
MODELS = (1, 2, 4)  # devices along "model"
EACH = 3  # rows of a batch for each place along "data"


def layout(devices, model):
    """A mesh, and the rows of a batch of all that belongs to it.

    {"shape"; of each device in the order of the mesh: "process", "slice", "place" (coordinates of a
    TPU and number of its core) and "span" (the first row that it holds, and the one after the
    last); "rows" of each process}
    """
    mesh = meshes.make(model=model, devices=devices)
    batch = EACH * mesh.shape[meshes.DATA]
    spans = meshes.batch_sharding(mesh).devices_indices_map((batch,))
    flat = mesh.devices.ravel().tolist()
    return {
        "shape": mesh.devices.shape,
        "process": [d.process_index for d in flat],
        "slice": [getattr(d, "slice_index", 0) for d in flat],
        "place": [[*getattr(d, "coords", ()), getattr(d, "core_on_chip", d.id)] for d in flat],
        "span": [spans[d][0].indices(batch)[:2] for d in flat],
        "rows": {
            p: encode.local_rows(batch, mesh, p).tolist()
            for p in sorted({d.process_index for d in flat})
        },
    }


if __name__ == "__main__":
    print(json.dumps({on: {m: layout(slices.devices(on), m) for m in MODELS} for on in MACHINES}))
