# SPDX-License-Identifier: Apache-2.0
"""TG-CIR in PyTorch, with the tensor names, the losses and the optimizers of the published runs.

The formulas are those of `cir_jax.models.tgcir`, written again in PyTorch's operations. A network
of stage one has one token learner and one table of masks for images and texts, and the learned
inverse temperature `loss_T`; that of stage two has copies of both for the texts. Source: Wen et
al., "Target-Guided Composed Image Retrieval", ACM MM 2023; Feng et al., arXiv 2404.11317; names and
shapes of their published state dicts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cir_jax.models.tgcir.model import GLOBAL, LOCAL
from cir_jax.towers.clip import sizes
from cir_jax.towers.clip.sizes import ClipSize
from tools.torch_models import clip, random_values


class _Head(nn.Module):
    """One token of the token learner, [B, L, D] -> [B, D]."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.conv(x.mT).sigmoid()
        return (weights @ x)[:, 0] / x.shape[1]


class TokenLearner(nn.Module):
    """[B, L, D] -> [B, 8, D]."""

    def __init__(self, width: int):
        super().__init__()
        self.tokenizers = nn.ModuleList(_Head(width) for _ in range(LOCAL))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([head(x) for head in self.tokenizers], dim=1)


class _Backbone(nn.Module):
    def __init__(self, size: ClipSize, context: int, two: bool):
        super().__init__()
        width = size.embedding
        self.clip = clip.build(size, context)
        self.image_backbone = self.clip.visual  # the same tensors under a second name
        self.tokenlearn, self.masks = TokenLearner(width), nn.Embedding(GLOBAL, width)
        self.fc = nn.Linear(size.vision.width, width)
        self.text_fc = nn.Linear(size.text.width, width)
        if two:
            self.tokenlearn_text = TokenLearner(width)
            self.masks_text = nn.Embedding(GLOBAL, width)


def _gate(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1), nn.Sigmoid())


class TgCir(nn.Module):
    """The network of one stage.

    Args:
      size: encoders, with a ViT.
      context: text positions.
      stage: 1 or 2; in stage two nothing of the image side trains.
      temperature: tau of stage two.
      matching: temperature of the matching loss.
    """

    def __init__(
        self,
        size: ClipSize,
        context: int = sizes.CONTEXT,
        *,
        stage: int = 1,
        temperature: float = 0.02,
        matching: float = 0.1,
    ):
        super().__init__()
        width = size.embedding
        self.backbone = _Backbone(size, context, two=stage == 2)
        self.local_weight = nn.Parameter(torch.ones(GLOBAL + LOCAL))
        self.s_remain_map, self.t_remain_map, self.t_replace_map = (_gate(width) for _ in range(3))
        if stage == 1:
            self.loss_T = nn.Parameter(torch.tensor([10.0]))
        else:
            part = self.backbone
            for frozen in (part.image_backbone, part.tokenlearn, part.fc, part.masks):
                frozen.requires_grad_(False)
        self.temperature, self.matching = temperature, matching

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] normalised -> [B, 12, D]."""
        part = self.backbone
        *_, (_, positions), (_, feature) = part.clip.visual.layers(pixels)
        return _tokens(feature, part.masks, part.tokenlearn(part.fc(positions)))

    def text_tokens(self, tokens: Tensor) -> Tensor:
        """[B, T] ids, T the whole context -> [B, 12, D]."""
        part = self.backbone
        *_, (_, positions), (_, feature) = part.clip.text_layers(tokens)
        masks = getattr(part, "masks_text", part.masks)
        learner = getattr(part, "tokenlearn_text", part.tokenlearn)
        return _tokens(feature, masks, learner(part.text_fc(positions)))

    def target(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] normalised -> [B, D] unit rows."""
        return _pooled(self.image_tokens(pixels))

    def fuse(self, reference: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 12, D] twice -> unit query [B, D] and its gates [B, 12, 1]."""
        keep = self.s_remain_map(torch.cat([reference, text], dim=-1))
        return _pooled(torch.lerp(text, reference, keep)), keep

    def query(self, reference: Tensor, tokens: Tensor) -> Tensor:
        """[B, 12, D] and [B, T] -> [B, D] unit rows."""
        return self.fuse(reference, self.text_tokens(tokens))[0]

    def batch_losses(self, references: Tensor, texts: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Stage one: the terms of the published loss, each a mean over the batch, unweighted.

        References and targets are pixels [B, 3, S, S].
        """
        reference, target = self.image_tokens(references), self.image_tokens(targets)
        text = self.text_tokens(texts)
        query, keep = self.fuse(reference, text)
        row, label = _pooled(target), torch.arange(len(query))
        shown, told = reference.detach(), text.detach()
        keep_t = self.t_remain_map(torch.cat([shown, target], dim=-1))
        replace_t = self.t_replace_map(torch.cat([told, target], dim=-1))
        taught = keep_t * shown + replace_t * told
        weights = self.local_weight[:, None]
        teacher, teacher_row = (
            (F.normalize(x, dim=-1) * weights).flatten(1) for x in (taught, target)
        )
        apart = F.normalize(teacher_row, dim=-1)
        wanted = (apart @ apart.T / self.matching).softmax(dim=1).detach()
        scores = (query @ row.T / self.matching).log_softmax(dim=1)
        return {
            "contrastive": F.cross_entropy(query @ row.T * self.loss_T, label),
            "teacher_ranking": F.cross_entropy(teacher @ teacher_row.T * self.loss_T, label),
            "mask_constraint": (keep_t + replace_t - 1).square().mean(),
            "orthogonality": sum(map(_overlap, (reference, target, text))) / 3,
            "mask_distillation": F.mse_loss(keep, keep_t.detach())
            + F.mse_loss(1 - keep, replace_t.detach()),
            "matching": F.kl_div(scores, wanted, reduction="batchmean"),
        }

    def bank_loss(self, references: Tensor, texts: Tensor, targets: Tensor, label: Tensor):
        """Stage two, mean over the batch.

        Args:
          references: [B, 12, D], rows of the reference bank.
          texts: [B, T].
          targets: [N, D] unit rows, the whole target bank.
          label: [B], row of each query's target.
        """
        return F.cross_entropy(self.query(references, texts) @ targets.T / self.temperature, label)


def random(size: ClipSize, context: int, seed: int = 0, **options: float) -> TgCir:
    """A network of random values, those of its two names of the ViT the same."""
    model = TgCir(size, context, **options)
    values = random_values.state(model, seed)
    for name in values:
        if name.startswith("backbone.image_backbone."):
            values[name] = values[name.replace("image_backbone", "clip.visual")]
    if "loss_T" in values:
        values["loss_T"] = torch.tensor([8.0])
    model.load_state_dict(values)
    return model.eval()


def stage_two(model: TgCir, size: ClipSize, context: int, **options: float) -> TgCir:
    """The network of stage two as it starts: the texts get copies of what the images have."""
    started = TgCir(size, context, stage=2, **options)
    values = {n: x for n, x in model.state_dict().items() if n != "loss_T"}
    for name in list(values):
        for part in ("tokenlearn", "masks"):
            if name.startswith(f"backbone.{part}."):
                copy = name.replace(f"backbone.{part}.", f"backbone.{part}_text.")
                values[copy] = values[name].clone()
    started.load_state_dict(values, strict=True)
    return started.eval()


def optimizer(model: TgCir, learning_rate: float = 2e-5) -> torch.optim.AdamW:
    """AdamW of the released stage two: one group of all that is not frozen.

    What gets no gradient there (`logit_scale`, `local_weight`, the teacher's gates) is passed by.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        trained, lr=learning_rate, betas=(0.9, 0.999), eps=1e-7, weight_decay=0.01
    )


def _tokens(feature: Tensor, masks: nn.Embedding, local: Tensor) -> Tensor:
    return torch.cat([feature[:, None] * masks.weight.relu(), local], dim=1)


def _pooled(tokens: Tensor) -> Tensor:
    return F.normalize(tokens.mean(dim=1), dim=-1)


def _overlap(tokens: Tensor) -> Tensor:
    tokens = F.normalize(tokens, dim=-1)
    return (tokens @ tokens.mT - torch.eye(tokens.shape[1])).square().mean()
