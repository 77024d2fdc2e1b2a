# SPDX-License-Identifier: Apache-2.0
"""A tiny LLaVA and a tiny chat model with random weights, and a real server process for them.

Random weights write noise. Three settings of the saved generation config make texts of it that a
pipeline accepts: only the tokens of whole words may be written, none twice in a row of them, and
the end becomes likelier with every token, so that it comes after a few words.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

WORDS = (
    "red blue green white black long short dress shirt skirt sleeves flowers stripes dots collar "
    "belt pattern bright dark plain"
).split()
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
IMAGE = "<image>"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: {% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
START_SECONDS = 120  # of the server, before it is given up
PATCH, SIDE = 8, 32  # pixels


def write_vlm(folder):
    """Saves a LlavaForConditionalGeneration and its processor; the same bytes each time."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )  # fmt: skip
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = _tokenizer()
    torch.set_num_threads(1)  # more only get in each other's way with tensors so small
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=SIDE, patch_size=PATCH, initializer_factor=8.0,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=_text_config(tokenizer),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=(SIDE // PATCH) ** 2,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    _finish(model, tokenizer)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    processor = LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        chat_template=TEMPLATE, num_additional_image_tokens=1,
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def write_chat_model(folder):
    """Saves a LlamaForCausalLM that reads no images, and its tokenizer."""
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = _tokenizer()
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(1)
    model = LlamaForCausalLM(_text_config(tokenizer))
    _finish(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _tokenizer():
    """Byte-level BPE that knows every word of WORDS as one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=[*SPECIAL.values(), IMAGE], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([" " + " ".join(WORDS)] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **SPECIAL, extra_special_tokens={"image_token": IMAGE}
    )


def _text_config(tokenizer):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=1024,
        initializer_range=0.5, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def _finish(model, tokenizer):
    allowed = set(tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in WORDS]))
    allowed.add(tokenizer.eos_token_id)
    options = model.generation_config
    options.suppress_tokens = sorted(set(range(len(tokenizer))) - allowed)
    options.exponential_decay_length_penalty = (4, 1.6)  # (tokens before it grows, its base)
    options.min_new_tokens = 2
    options.repetition_penalty = 1.5
    # `transformers serve` draws only if this is on, whatever temperature it is asked for.
    options.do_sample = True


class Server:
    """`transformers serve` as a process of its own on loopback."""

    def __init__(self, folder, port):
        self.folder, self.port = str(folder), port
        self.url = f"http://127.0.0.1:{port}/v1"
        self.log = Path(folder) / "server.log"
        self._process = None

    def start(self):
        """Starts the process; it answers some seconds later."""
        command = (
            sys.executable, "-c", "from transformers.cli.transformers import main; main()",
            "serve", "--host", "127.0.0.1", "--port", str(self.port), self.folder,
        )  # fmt: skip
        offline = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=offline, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self):
        """Returns when it answers.

        Raises:
          RuntimeError: the process ended, or START_SECONDS passed; with the end of its log.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError):
                health = f"http://127.0.0.1:{self.port}/health"
                with urllib.request.urlopen(health, timeout=5) as reply:
                    if reply.status == 200:
                        return
            time.sleep(0.1)
        raise RuntimeError(f"no server: {self.log.read_text()[-3000:]}")

    def kill(self):
        """SIGKILL, as a machine that goes away."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def serve(folder, port=0):
    """A running `Server`; killed at the end."""
    server = Server(folder, port or free_port())
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def free_port():
    """A port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
