# SPDX-License-Identifier: Apache-2.0
"""On the PYTHONPATH of a process: the devices of hosts take turns in its meshes, half a host each.

So they do along "data" on a v5litepod-32: host 0 has the devices 0, 1, 8 and 9 of the mesh, host 1
those from 16 on, and tests/runtime/test_topologies.py holds that against libtpu.
"""

import collections

import numpy as np
from jax.experimental import mesh_utils

_in_order = mesh_utils.create_device_mesh


def create_device_mesh(shape, devices, **options):
    """The devices that jax would arrange one host after the other."""
    of = collections.defaultdict(list)
    for device in devices:
        of[device.process_index].append(device)
    half = max(len(next(iter(of.values()))) // 2, 1)
    turns = [part[i : i + half] for i in range(0, 2 * half, half) for part in of.values()]
    found = np.empty(len(devices), object)
    found[:] = [device for turn in turns for device in turn]
    assert sorted(d.id for d in found) == sorted(d.id for d in devices)
    return found.reshape(shape)


mesh_utils.create_device_mesh = create_device_mesh
