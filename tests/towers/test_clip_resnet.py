# SPDX-License-Identifier: Apache-2.0
"""CLIP's ResNet against the same network written with torch functions, and golden values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.towers.clip import sizes
from cir_jax.towers.clip.resnet import (
    AttentionPool,
    Bottleneck,
    FixedBatchNorm,
    ModifiedResNet,
    average_pool,
)
from tests.towers import weights

SIZE = sizes.ResNetSize(image=64, blocks=(2, 1, 1, 1), width=8, heads=4)
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.normal(size=(2, 64, 64, 3)).astype(np.float32)


def tower(**options):
    return weights.scrambled(lambda: ModifiedResNet(SIZE, 24, rngs=nnx.Rngs(0), **options))


class Torch:
    """The network as torch functions over our weights, NCHW."""

    def __init__(self, module, heads=0):
        self.heads = heads
        self.weights = {
            path: torch.from_numpy(np.array(leaf[...]))
            for path, leaf in weights.leaves(module).items()
        }

    def conv(self, x, path, stride=1):
        kernel = self.weights[f"{path}/kernel"].permute(3, 2, 0, 1)
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(self, x, path):
        get = self.weights.__getitem__
        return F.batch_norm(
            x, *(get(f"{path}/{name}") for name in ("mean", "var", "scale", "bias")), eps=1e-5
        )

    def bottleneck(self, x, path, stride):
        y = F.relu(self.norm(self.conv(x, f"{path}conv1"), f"{path}norm1"))
        y = F.relu(self.norm(self.conv(y, f"{path}conv2"), f"{path}norm2"))
        if stride > 1:
            x, y = F.avg_pool2d(x, stride), F.avg_pool2d(y, stride)
        y = self.norm(self.conv(y, f"{path}conv3"), f"{path}norm3")
        if f"{path}shortcut_conv/kernel" in self.weights:
            x = self.norm(self.conv(x, f"{path}shortcut_conv"), f"{path}shortcut_norm")
        return F.relu(x + y)

    def features(self, x):
        for number in (1, 2, 3):
            x = self.conv(x, f"conv{number}", stride=2 if number == 1 else 1)
            x = F.relu(self.norm(x, f"norm{number}"))
        x = F.avg_pool2d(x, 2)
        for stage, blocks in enumerate(SIZE.blocks, start=1):
            for i in range(blocks):
                x = self.bottleneck(x, f"stage{stage}/{i}/", 2 if stage > 1 and i == 0 else 1)
        return x

    def pool(self, x, path="pool/"):
        linear = {
            name: (self.weights[f"{path}{name}/kernel"].T, self.weights[f"{path}{name}/bias"])
            for name in ("query", "key", "value", "out")
        }
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x]) + self.weights[f"{path}position"][:, None]
        mixed, _ = F.multi_head_attention_forward(
            x[:1], x, x, x.shape[-1], self.heads,
            in_proj_weight=None,
            in_proj_bias=torch.cat([linear[name][1] for name in ("query", "key", "value")]),
            bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0,
            out_proj_weight=linear["out"][0], out_proj_bias=linear["out"][1],
            use_separate_proj_weight=True,
            q_proj_weight=linear["query"][0],
            k_proj_weight=linear["key"][0],
            v_proj_weight=linear["value"][0],
            training=False, need_weights=False,
        )  # fmt: skip
        return mixed[0]


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))


def nhwc(x):
    return x.numpy().transpose(0, 2, 3, 1)


def test_every_part_equals_torch_within_1e5():
    module = tower()
    reference = Torch(module, SIZE.heads)
    want = reference.features(nchw(PIXELS))
    got = jax.jit(module.features)(PIXELS)
    assert got.shape == (2, 2, 2, 256)
    scale = float(want.abs().max())
    np.testing.assert_allclose(got / scale, nhwc(want) / scale, atol=1e-5)
    feature = reference.pool(want).numpy()
    size = np.abs(feature).max()
    pooled = jax.jit(module.pool.__call__)(nhwc(want))
    np.testing.assert_allclose(pooled / size, feature / size, atol=1e-5)
    whole = jax.jit(module.__call__)(PIXELS)
    np.testing.assert_allclose(whole / size, feature / size, atol=1e-5)


@pytest.mark.parametrize("channels, stride", [(8, 1), (32, 1), (8, 2), (32, 2)])
def test_bottleneck_equals_torch_within_1e5(channels, stride):
    block = weights.scrambled(lambda: Bottleneck(channels, 8, stride, rngs=nnx.Rngs(0)))
    # A border row and column that the pool of stride 2 drops.
    x = RANDOM.normal(size=(2, 7, 7, channels)).astype(np.float32)
    want = Torch(block).bottleneck(nchw(x), "", stride)
    np.testing.assert_allclose(jax.jit(block.__call__)(x), nhwc(want), atol=1e-5)
    assert block.projects == (stride > 1 or channels != 32)


def test_average_pool_equals_torch():
    x = RANDOM.normal(size=(2, 7, 5, 3)).astype(np.float32)
    want = nhwc(F.avg_pool2d(nchw(x), 2))
    np.testing.assert_allclose(average_pool(jnp.asarray(x), 2), want, atol=1e-6)


def test_attention_pool_golden_values():
    # Computed with OpenAI's implementation: parameter i of nine, counted from 1 in the order
    # position, key, query, value, out (weight before bias), is sin(k + i / 10) / 2 at element k.
    def sines(shape, start):
        return np.sin(np.arange(np.prod(shape)) + start).reshape(shape).astype(np.float32)

    found = {"position": 0.5 * sines((5, 8), 0.1)}
    for i, (name, outputs) in enumerate((("key", 8), ("query", 8), ("value", 8), ("out", 4))):
        found[f"{name}/kernel"] = 0.5 * sines((outputs, 8), 0.1 * (2 * i + 2)).T
        found[f"{name}/bias"] = 0.5 * sines((outputs,), 0.1 * (2 * i + 3))
    x = sines((1, 8, 2, 2), 0.0).transpose(0, 2, 3, 1)
    pool = weights.filled(lambda: AttentionPool(2, 8, 2, 4, rngs=nnx.Rngs(0)), found)
    got = jax.jit(pool.__call__)(x)
    want = [[1.5500194, 0.5203167, -1.0524570, -0.0499739]]
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("remat", ["products", "layers"])
def test_remat_changes_no_value(remat):
    size = sizes.ResNetSize(image=32, blocks=(1, 1, 1, 1), width=8, heads=4)
    pixels = jnp.asarray(PIXELS[:, :32, :32])

    def run(remat):
        make = lambda: ModifiedResNet(size, 24, remat=remat, rngs=nnx.Rngs(0))
        graph, params = nnx.split(weights.scrambled(make))

        def total(p):
            return jnp.sin(nnx.merge(graph, p)(pixels)).mean()

        # A derivative along one direction compiles faster than the gradient, and a parameter cut
        # off by the recomputation would change it as well.
        along = jax.jit(lambda p: jax.jvp(total, (p,), (p,)))
        return jax.make_jaxpr(total)(params), along(params)

    (plain, want), (marked, got) = run("none"), run(remat)
    assert str(marked).count("remat") == sum(size.blocks) and "remat" not in str(plain)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert abs(want[1]) > 1e-3


def test_bfloat16_is_close_and_returns_float32():
    want = jax.jit(tower().__call__)(PIXELS)
    got = jax.jit(tower(dtype=jnp.bfloat16).__call__)(PIXELS)
    assert want.dtype == got.dtype == jnp.float32
    assert float(jnp.linalg.norm(want - got) / jnp.linalg.norm(want)) < 0.03
    assert float(jnp.abs(want - got).max()) > 0  # the compute type is really used


def test_statistics_are_no_parameters():
    norm = FixedBatchNorm(4)
    _, parameters, statistics = nnx.split(norm, nnx.Param, nnx.BatchStat)
    assert set(parameters) == {"scale", "bias"} and set(statistics) == {"mean", "var"}


@pytest.mark.parametrize("name, buffers", [("RN50", 53_303), ("RN50x4", 109_845)])
def test_number_of_statistics(name, buffers):
    # The released buffers hold a mean, a variance and one step counter for every norm.
    size = sizes.find(name)
    module = nnx.eval_shape(lambda: ModifiedResNet(size.vision, size.embedding, rngs=nnx.Rngs(0)))
    found = [
        leaf.shape[0]
        for path, leaf in weights.leaves(module).items()
        if path.endswith(("/mean", "/var"))
    ]
    assert sum(found) + len(found) // 2 == buffers


def test_image_of_another_size():
    with pytest.raises(UserError, match=r"image of 32x64 pixels, but the tower takes 64x64; set "):
        tower()(jnp.zeros((1, 32, 64, 3)))
