# SPDX-License-Identifier: Apache-2.0
"""Makes peft_adapters.tar.xz: small adapters that PEFT wrote, and what it makes of them.

In an environment of its own, for the tests need no PEFT:

    pip install peft==0.21.2 torch==2.13.0 transformers
    python tests/convert/peft_adapters.py BASE tests/convert/peft_adapters.tar.xz

BASE is the folder that `published.write("huggingface", BASE, published.state())` makes. For each
case the archive has what `save_pretrained` wrote, and expected.json: of each weight that
`merge_and_unload` changed, four sums of its values.
"""

import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path

TEXT = r"text_model\.encoder\.layers\.[01]\.(self_attn\.q_proj|mlp\.fc1)"
VISION = r"vision_model\.encoder\.layers\.0\.self_attn\.(v_proj|out_proj)|visual_projection"
CASES = {
    "plain": {"target_modules": VISION},
    "root": {"target_modules": TEXT, "use_rslora": True,
             "rank_pattern": {"fc1": 1, r"layers\.1\.self_attn\.q_proj": 3},
             "alpha_pattern": {r".*\.0\.mlp\.fc1": 7, "fc1": 5}},
    "biases": {"target_modules": VISION, "bias": "all"},
    "own_biases": {"target_modules": TEXT, "bias": "lora_only"},
    "bias_of_b": {"target_modules": TEXT, "lora_bias": True},
    "lengths": {"target_modules": TEXT + "|.*(patch|text_model.*position)_embedding",
                "use_dora": True, "r": 1},
    "saved": {"target_modules": VISION, "modules_to_save": ["final_layer_norm"]},
    "other_way": {"target_modules": TEXT, "fan_in_fan_out": True},
    "same_base": {"target_modules": VISION, "init_lora_weights": "mica"},
    "other_base": {"target_modules": VISION, "init_lora_weights": "pissa"},
    "tokens": {"target_modules": VISION, "trainable_token_indices": {"token_embedding": [5]}},
    "blocks": {"target_modules": VISION},  # and a config of its own, below
}  # fmt: skip


def sums(values):
    """Four sums of an array by which any change of it is seen."""
    import numpy as np

    values = np.asarray(values, np.float64).ravel()
    places = np.arange(values.size)
    return [float(values @ np.cos(k * places + k)) for k in (0.1, 1, 2, 3)]


def main(base, archive):
    """Trains nothing: what would be trained gets random values that take little room."""
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.config import BdLoraConfig
    from transformers import CLIPModel

    CASES["blocks"]["use_bdlora"] = BdLoraConfig(
        target_modules_bd_a=["v_proj"], nblocks=2, match_strict=False
    )
    before = CLIPModel.from_pretrained(base).state_dict()
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive, "w:xz", preset=9) as out:
        for name, options in CASES.items():
            torch.manual_seed(0)
            options = {"r": 2, "lora_alpha": 3} | options
            model = get_peft_model(CLIPModel.from_pretrained(base), LoraConfig(**options))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.copy_(torch.randint(1, 9, parameter.shape) / 64)
            model.peft_config["default"].base_model_name_or_path = "BASE"
            model.save_pretrained(Path(folder) / name)
            merged = model.merge_and_unload().state_dict()
            changed = {n: x for n, x in merged.items() if not torch.equal(x, before[n])}
            expected = {n: sums(x) for n, x in changed.items()}
            (Path(folder) / name / "expected.json").write_text(json.dumps(expected))
            for file in ("adapter_config.json", "adapter_model.safetensors", "expected.json"):
                content = (Path(folder) / name / file).read_bytes()
                entry = tarfile.TarInfo(f"{name}/{file}")
                entry.size = len(content)
                out.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main(*sys.argv[1:])
