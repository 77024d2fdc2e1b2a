# SPDX-License-Identifier: Apache-2.0
"""Texts from a transformers model in this process: LLaVA and any other image-text-to-text model.

The way for one machine with an accelerator and no server. It runs on PyTorch, because that is what
such models are published for; PyTorch is imported only here and only when asked for.
"""

import hashlib
import importlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.errors import UserError, nearest
from cir_jax.generation import caption_inputs
from cir_jax.generation.captioner import Reply, Request, sampling
from cir_jax.servers import pictures
from cir_jax.servers.client import Refusals

KEYS = {
    "batch": (8, "requests at a time", "[1, 10000]"),
    "device": ("auto", "cpu, cuda, ...", None),
    "dtype": ("auto", "auto = bfloat16 on accelerators",
              ("auto", "float32", "bfloat16", "float16")),
}  # fmt: skip
DTYPES = ("auto", "float32", "bfloat16", "float16")


class Captioner:
    """Runs a model; see `captioner.Captioner`. The weights are loaded with the first request.

    Args:
      section: `config.caption` or `config.rewrite`.
      seed: of the run.
      images: whether images will be asked for. Without, a model of text alone will do.

    Raises:
      UserError: PyTorch is missing, there is no such model, or a config value cannot work.
    """

    def __init__(self, section: ConfigDict, seed: int, images: bool):
        caption_inputs.check_section(section)
        self._torch = _torch()
        self._section, self._seed = section, seed
        self._batch = int(caption_inputs.at_least(section, "batch", 1))
        self._limit = caption_inputs.token_limit(section)
        self._device = _device(self._torch, section.device)
        self._dtype = _dtype(section.dtype, self._device)
        self._config = _load("AutoConfig", section.model)
        self._sees = _sees(self._config)
        if images and not self._sees:
            raise UserError(
                f"model={section.model!r} is of type {self._config.model_type!r}, which reads no "
                "images; give an image-text-to-text model such as LLaVA"
            )
        self._model: Any = None
        self._processor: Any = None
        self._refusals = Refusals(f"model {section.model}", "give another model or another prompt")
        self.identity = {
            "captioner": "local",
            "model": section.model,
            "revision": _revision(self._config, section.model),
            "dtype": self._dtype,
            "temperature": section.temperature,
            "top_p": section.top_p,
            "max_side": section.max_side,
        }

    @classmethod
    def from_config(cls, section: ConfigDict, seed: int, names: Sequence[str]) -> "Captioner":
        """See `captioner.Captioner`."""
        return cls(section, seed, images=len(names) > 0)

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """One reply per request, `batch` of them at a time.

        Raises:
          UserError: the weights cannot be loaded, the batch does not fit into memory, or the model
            refuses the first requests.
        """
        requests = iter(requests)
        while chunk := list(itertools.islice(requests, self._batch)):
            groups: dict[tuple, list[tuple[Request, Any]]] = {}
            for request in chunk:
                image, seed, temperature = (
                    None,
                    *sampling(request, self._seed, self._section.temperature),
                )
                if request.image is not None:
                    try:
                        image = pictures.small_image(
                            request.image, self._section.max_side, request.loading
                        )
                    except UserError as error:
                        yield caption_inputs.unreadable(request.key, error)
                        continue
                # A draw must depend on its own seed only, so that a resumed run repeats it.
                alone = (seed, request.key) if temperature else ()
                group = (image is not None, temperature, alone)
                groups.setdefault(group, []).append((request, image))
            for (_, temperature, alone), members in groups.items():
                yield from self._replies(members, temperature, alone[0] if alone else 0)

    def _replies(
        self, members: list[tuple[Request, Any]], temperature: float, seed: int
    ) -> Iterator[Reply]:
        """Replies of requests that go through the model together.

        A processor may refuse one image (too narrow, too many tokens); the others are then tried
        one by one.
        """
        try:
            texts = self._texts(members, temperature, seed)
        except self._torch.OutOfMemoryError:
            raise UserError(
                f"batch={len(members)} does not fit into the memory of {self._device}; lower "
                "batch, max_side or max_tokens, or use dtype=bfloat16"
            ) from None
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            if len(members) > 1:
                for member in members:
                    yield from self._replies([member], temperature, seed)
                return
            why = self._refusals.refused(f"the model cannot take it: {error}")
            yield Reply(members[0][0].key, "", why, final=True)
            return
        self._refusals.success()
        for (request, _), (text, ended) in zip(members, texts, strict=True):
            yield Reply(request.key, text, "" if ended else f"cut at {self._limit} tokens")

    def _texts(
        self, members: list[tuple[Request, Any]], temperature: float, seed: int
    ) -> list[tuple[str, bool]]:
        """What the model writes, and whether it came to an end."""
        torch = self._torch
        if self._model is None:
            self._model, self._processor = self._loaded()
        tokenizer = getattr(self._processor, "tokenizer", self._processor)
        tensors = self._tokens(members, tokenizer).to(self._device)
        for name, value in tensors.items():
            if torch.is_tensor(value) and value.is_floating_point():
                tensors[name] = value.to(self._model.dtype)
        options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None}
        if temperature:
            torch.manual_seed(seed)
            options = {"do_sample": True, "temperature": temperature, "top_p": self._section.top_p}
        else:
            options["top_k"] = None
        with torch.inference_mode():
            rows = self._model.generate(
                **tensors,
                **options,
                max_new_tokens=self._limit,
                pad_token_id=tokenizer.pad_token_id,
            )
        rows = rows[:, tensors["input_ids"].shape[1] :].tolist()
        ends = self._model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        return [
            (
                tokenizer.decode(row, skip_special_tokens=True).strip(),
                len(row) < self._limit or not ends.isdisjoint(row),
            )
            for row in rows
        ]

    def _tokens(self, members: list[tuple[Request, Any]], tokenizer: Any) -> Any:
        """Left-padded tensors of the prompts, written as the model's chat template wants them."""
        images = [image for _, image in members if image is not None]
        prompts = []
        for request, image in members:
            content: Any = request.prompt
            if self._sees:
                content = [{"type": "text", "text": request.prompt}]
                content = [{"type": "image"}, *content] if image is not None else content
            prompts.append(
                self._processor.apply_chat_template(
                    [{"role": "user", "content": content}],
                    add_generation_prompt=True,
                    tokenize=False,
                )
            )
        start = tokenizer.bos_token
        return self._processor(
            text=prompts,
            **({"images": [[image] for image in images]} if images else {}),
            padding=True,
            return_tensors="pt",
            # Many templates write it themselves; twice is not what the model was trained on.
            add_special_tokens=not (start and prompts[0].startswith(start)),
        )

    def _loaded(self) -> tuple[Any, Any]:
        """(model in evaluation mode, processor or tokenizer that pads on the left)."""
        name, torch = self._section.model, self._torch
        progress.say(f"loading {name} on {self._device} in {self._dtype}")
        processor = _load("AutoProcessor" if self._sees else "AutoTokenizer", name)
        tokenizer = getattr(processor, "tokenizer", processor)
        if not (getattr(processor, "chat_template", None) or tokenizer.chat_template):
            raise UserError(
                f"model={name!r} has no chat template, so nothing says how it is asked; give an "
                "instruction-tuned model, or add chat_template.jinja to its folder"
            )
        tokenizer.padding_side = "left"  # what is written must follow the prompt directly
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        kind = "AutoModelForImageTextToText" if self._sees else "AutoModelForCausalLM"
        model = _load(kind, name, dtype=getattr(torch, self._dtype))
        return model.to(self._device).eval(), processor


def _torch() -> ModuleType:
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise UserError(
            "captioner=local runs on PyTorch, which is not installed; "
            "pip install 'cir_jax[torch]', or use captioner=server"
        ) from None


def _load(kind: str, name: str, **options: Any) -> Any:
    """`transformers.KIND.from_pretrained(name)`."""
    import transformers  # takes seconds, and other captioners do without

    try:
        return getattr(transformers, kind).from_pretrained(name, **options)
    except (OSError, ValueError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model={name!r} cannot be loaded ({reason}); give the folder or the hub name of a "
            "transformers model"
        ) from None


def _sees(config: ConfigDict) -> bool:
    from transformers.models.auto import modeling_auto

    return config.model_type in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def _device(torch: ModuleType, name: str) -> Any:
    cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name!r} is unknown; use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and not (cuda and (device.index or 0) < torch.cuda.device_count()):
        raise UserError(
            f"device={name!r} is not there, PyTorch sees {torch.cuda.device_count()} CUDA devices; "
            "use device=auto, or install a PyTorch built for your driver"
        )
    return device


def _dtype(name: str, device: Any) -> str:
    if name not in DTYPES:
        raise UserError(
            f"dtype={name!r} is unknown; there are: {', '.join(DTYPES)}.{nearest(name, DTYPES)}"
        )
    # bfloat16 is slower than float32 on most CPUs; float16 overflows in models trained in bfloat16.
    return name if name != "auto" else ("bfloat16" if device.type == "cuda" else "float32")


def _revision(config: ConfigDict, name: str) -> str:
    """The commit of a model of the hub; of a folder, a digest of its config and weight sizes."""
    if commit := getattr(config, "_commit_hash", None):
        return commit
    folder, digest = Path(name), hashlib.sha256()
    digest.update((folder / "config.json").read_bytes())
    for file in sorted((*folder.glob("*.safetensors"), *folder.glob("*.bin"))):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
    return digest.hexdigest()[:12]
