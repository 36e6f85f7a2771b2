"""Signatures of the recipes, for editors. Written by tools/write_stubs.py: do not edit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from robustclip.recipes import Trained
from robustclip.synthesis.painted import Result


class _Robustify:
    def __call__(self, recipe: str, **arguments: Any) -> Trained: ...
    def clipag_vit_b32(
        self, *, data: Sequence[str] = ..., sbu: str | None = ..., cc3m: str | None = ..., cc12m: str | None = ...,
        laion: str | None = ..., mix: Literal['concatenated', 'equal'] = ..., laion_share: float = ...,
        start: str = ..., architecture: str | None = ..., quick_gelu: bool | None = ..., name: str = ...,
        norm: Literal['l2', 'linf'] = ..., eps: float = ..., attack_steps: int = ..., clean_weight: float = ...,
        steps: int = ..., batch_size: int = ..., lr: float = ..., weight_decay: float = ..., warmup: int = ...,
        ema: float = ..., accumulate: int = ..., attack_negatives: Literal['gathered', 'local'] = ...,
        frozen_statistics: bool = ..., locked_groups: int = ..., grad_checkpointing: bool = ...,
        max_skipped: float | None = ..., allow_commands: bool = ..., cache: str | Path | None = ..., workers: int = ...,
        channels_last: bool = ..., compile: bool = ..., evaluate_every: int = ..., checkpoint_every: int = ...,
        keep: int = ..., resume: str | Path | None = ..., device: str = ..., dtype: str = ..., seed: int = ...,
        out: str | Path | None = ..., quick: bool = ...
    ) -> Trained:
        """CLIPAG's main model: ViT-B/32, L2."""
    def distance(
        self, *, data: str = ..., triplets: int = ..., kinds: Sequence[str] = ..., start: str = ..., name: str = ...,
        norm: Literal['l2', 'linf'] = ..., eps: float = ..., attack_steps: int = ..., margin: float = ...,
        rank: int = ..., alpha: float = ..., votes: Literal['given', 'shuffled'] = ..., steps: int = ...,
        batch_size: int = ..., lr: float = ..., warmup: int = ..., checkpoint_every: int = ..., keep: int = ...,
        resume: str | Path | None = ..., device: str = ..., dtype: str = ..., seed: int = ...,
        out: str | Path | None = ..., quick: bool = ...
    ) -> Trained:
        """Tune a referee's image distance on 2AFC triplets by LoRA with DreamSim's hinge loss, references attacked by PGD."""
    def emoji(
        self, *, start: str = ..., name: str = ..., norm: Literal['l2', 'linf'] = ..., eps: float = ...,
        attack_steps: int = ..., step_size: float | None = ..., attack_momentum: float = ..., random_start: bool = ...,
        warm_start: bool = ..., objective: Literal['text-bank', 'clip', 'siglip', 'tecoa', 'agft', 'fare',
        'trades'] = ..., attack_objective: Literal['same', 'text-bank', 'clip', 'siglip', 'tecoa', 'agft', 'fare',
        'divergence'] = ..., beta: float = ..., temperature: float = ..., anchor: float = ..., energy: float = ...,
        energy_steps: int = ..., energy_lr: float = ..., clean_weight: float = ..., steps: int = ...,
        batch_size: int = ..., lr: float = ..., weight_decay: float = ..., warmup: int = ..., ema: float = ...,
        accumulate: int = ..., attack_negatives: Literal['gathered', 'local'] = ..., frozen_statistics: bool = ...,
        locked_groups: int = ..., split: str = ..., dataset: Literal['emoji', 'icons'] = ...,
        sizes: Sequence[int] | None = ..., channels_last: bool = ..., compile: bool = ..., evaluate_every: int = ...,
        checkpoint_every: int = ..., keep: int = ..., resume: str | Path | None = ..., device: str = ...,
        dtype: str = ..., seed: int = ..., out: str | Path | None = ..., quick: bool = ...
    ) -> Trained:
        """Robustify emoji-vanilla on the six guide styles of the embedded emoji set."""
    def fare_vit_l14(
        self, *, data: str | None = ..., objective: Literal['fare', 'tecoa', 'agft'] = ..., temperature: float = ...,
        template: str = ..., start: str = ..., name: str = ..., norm: Literal['l2', 'linf'] = ..., eps: float = ...,
        attack_steps: int = ..., step_size: float = ..., attack_momentum: float = ..., clean_weight: float = ...,
        steps: int = ..., batch_size: int = ..., lr: float = ..., weight_decay: float = ..., warmup: int = ...,
        ema: float = ..., grad_clip: float = ..., accumulate: int = ..., grad_checkpointing: bool = ...,
        frozen_statistics: bool = ..., locked_groups: int = ..., max_skipped: float | None = ..., workers: int = ...,
        channels_last: bool = ..., compile: bool = ..., evaluate_every: int = ..., checkpoint_every: int = ...,
        keep: int = ..., resume: str | Path | None = ..., device: str = ..., dtype: str = ..., seed: int = ...,
        out: str | Path | None = ..., quick: bool = ...
    ) -> Trained:
        """FARE on ViT-L/14 with the released settings: preserve the original embeddings under attack."""
    def leaf(
        self, *, data: Sequence[str] = ..., start: str = ..., name: str = ..., edits: int = ..., samples: int = ...,
        words: str | Path | None = ..., attack: Literal['leaf', 'random'] = ..., steps: int = ...,
        batch_size: int = ..., lr: float = ..., weight_decay: float = ..., warmup: int = ..., grad_clip: float = ...,
        allow_commands: bool = ..., cache: str | Path | None = ..., checkpoint_every: int = ..., keep: int = ...,
        resume: str | Path | None = ..., device: str = ..., dtype: str = ..., seed: int = ...,
        out: str | Path | None = ..., quick: bool = ...
    ) -> Trained:
        """Train a text tower against edits of characters by LEAF: edited texts keep the original's embeddings."""
    clipag_convnext = clipag_vit_b32
    """CLIPAG's ablation of the architecture: ConvNeXt-Base (App. C), whose pictures were over-saturated."""
    clipag_linf = clipag_vit_b32
    """CLIPAG's ablation of the threat model: L-inf (App. C), similar but less pleasing."""
    clipag_vit_b16 = clipag_vit_b32
    """CLIPAG's ablation of the architecture: ViT-B/16 (App. C), whose pictures had artefacts."""
    emoji_agft = emoji
    """AGFT on emoji: targets under attack are emoji-vanilla's softened predictions on the clean images."""
    emoji_fare = emoji
    """FARE on emoji: preserve emoji-vanilla's clean embeddings under RobustVLM's attack."""
    emoji_jem = emoji
    """CLIP-JEM on emoji: contrastive adversarial loss plus contrastive energy loss."""
    emoji_tecoa = emoji
    """TeCoA on emoji: cross-entropy among all class texts under RobustVLM's attack."""
    emoji_trades = emoji
    """TRADES on emoji: clean loss plus divergence of the predictions under attack."""
    emoji_vit = emoji
    """Robustify the small ViT of the embedded world, as the recipe emoji does the ResNet."""
    tecoa_vit_l14 = fare_vit_l14
    """TeCoA on ViT-L/14 with the settings that FARE was compared with."""

robustify: _Robustify

class _Synthesize:
    def __call__(self, prompts: Sequence[str] | str | Path, referee: Any = ..., *, recipe: str = ..., **arguments: Any) -> Result: ...
    def clipag(
        self, prompt: str | Sequence[str] = ..., *, prompts: str | Path | None = ..., referee: Sequence[str] = ...,
        seeds: Sequence[int] = ..., size: str | int | None = ..., init: str = ..., candidates: int = ...,
        temperature: float = ..., strength: float = ..., canvas: Literal['pixels', 'pyramid'] = ..., steps: int = ...,
        lr: float = ..., augment: Literal['nudges', 'diffaug', 'none'] = ..., views: int = ..., patches: int = ...,
        patch_size: float = ..., patch_weight: float = ..., noise: float = ..., total_variation: float = ...,
        best_of: int = ..., by: str | None = ..., batch_size: int = ..., save_frames: bool | None = ...,
        enlarge: Literal['nearest', 'bicubic'] = ..., channels_last: bool = ..., compile: bool = ...,
        resume: str | Path | None = ..., device: str = ..., dtype: str = ..., seed: int | None = ...,
        out: str | Path | None = ..., quick: bool = ...
    ) -> Result:
        """Text to image by a robust referee, without a generator."""
    def clipag_faithful(
        self, prompt: str | Sequence[str] = ..., *, prompts: str | Path | None = ..., referee: Sequence[str] = ...,
        seeds: Sequence[int] = ..., size: str | int | None = ..., notebook: bool = ..., init: str = ...,
        candidates: int = ..., steps: int = ..., lr: float = ..., views: int = ..., patches: int = ...,
        patch_weight: float = ..., patch_quantile: float = ..., noise: float = ..., clip_norm: float = ...,
        threshold: float = ..., batch_size: int = ..., save_frames: bool | None = ..., enlarge: Literal['nearest',
        'bicubic'] = ..., channels_last: bool = ..., compile: bool = ..., resume: str | Path | None = ...,
        device: str = ..., dtype: str = ..., seed: int | None = ..., out: str | Path | None = ..., quick: bool = ...
    ) -> Result:
        """CLIPAG's notebook: 32 DiffAugment views and 32 patches, AdamW, dynamic thresholding."""
    def clipdraw(
        self, prompt: str | Sequence[str] = ..., *, prompts: str | Path | None = ..., referee: Sequence[str] = ...,
        seeds: Sequence[int] = ..., size: str | int | None = ..., normalise: bool = ..., init: str = ...,
        strokes: int = ..., curves: int = ..., reach: float = ..., width: float = ..., widest: float = ...,
        softness: float = ..., steps: int = ..., points_lr: float = ..., widths_lr: float = ...,
        colours_lr: float = ..., augment: bool = ..., views: int = ..., smallest_view: float = ...,
        largest_view: float = ..., negatives: bool = ..., negative_weight: float = ..., best_of: int = ...,
        by: str | None = ..., batch_size: int = ..., save_frames: bool | None = ..., enlarge: Literal['nearest',
        'bicubic'] = ..., channels_last: bool = ..., compile: bool = ..., resume: str | Path | None = ...,
        device: str = ..., dtype: str = ..., seed: int | None = ..., out: str | Path | None = ..., quick: bool = ...
    ) -> Result:
        """CLIPDraw: optimise vector strokes (points, widths, colours) by a referee; writes pictures and SVG files."""
    def clipstyler(
        self, prompt: str | Sequence[str] = ..., *, text: Sequence[str] = ..., prompts: str | Path | None = ...,
        content: Sequence[str] = ..., pairs: bool = ..., source: str = ..., referee: Sequence[str] = ...,
        seeds: Sequence[int] = ..., size: str | int | None = ..., canvas: Literal['network', 'pixels'] = ...,
        content_features: str = ..., templates: bool = ..., steps: int = ..., lr: float = ..., halve_every: int = ...,
        augment: bool = ..., patches: int = ..., patch_size: float = ..., threshold: float = ...,
        lambda_patch: float = ..., lambda_dir: float = ..., lambda_content: float = ..., lambda_tv: float = ...,
        contrast: float = ..., batch_size: int = ..., save_frames: bool | None = ..., enlarge: Literal['nearest',
        'bicubic'] = ..., channels_last: bool = ..., compile: bool = ..., resume: str | Path | None = ...,
        device: str = ..., dtype: str = ..., seed: int | None = ..., out: str | Path | None = ..., quick: bool = ...
    ) -> Result:
        """CLIPStyler: text-guided style transfer, by any referee."""
    def diffusion(
        self, prompt: str | Sequence[str] = ..., *, prompts: str | Path | None = ..., referee: Sequence[str] = ...,
        seeds: Sequence[int] = ..., model: str = ..., adapter: str | Path | None = ..., size: str | int | None = ...,
        steps: int = ..., guidance: float = ..., best_of: int = ..., by: str | None = ..., batch_size: int = ...,
        save_frames: bool = ..., enlarge: Literal['nearest', 'bicubic'] = ..., channels_last: bool = ...,
        compile: bool = ..., resume: str | Path | None = ..., device: str = ..., dtype: str = ...,
        seed: int | None = ..., out: str | Path | None = ..., quick: bool = ...
    ) -> Result:
        """Sample a diffusion model; with --best-of N keep the best of N by mutual information or a referee."""
    def direct_ascent(
        self, prompt: str | Sequence[str] = ..., *, prompts: str | Path | None = ..., referee: Sequence[str] = ...,
        seeds: Sequence[int] = ..., size: str | int | None = ..., every_size: bool = ..., steps: int = ...,
        lr: float = ..., unit_steps: bool = ..., views: int = ..., margin: float = ..., jitter: float = ...,
        noise: float = ..., best_of: int = ..., by: str | None = ..., batch_size: int = ...,
        save_frames: bool | None = ..., enlarge: Literal['nearest', 'bicubic'] = ..., channels_last: bool = ...,
        compile: bool = ..., resume: str | Path | None = ..., device: str = ..., dtype: str = ...,
        seed: int | None = ..., out: str | Path | None = ..., quick: bool = ...
    ) -> Result:
        """Direct Ascent Synthesis: optimise all resolutions at once, from grey."""
    def doodl(
        self, prompt: str | Sequence[str] = ..., *, prompts: str | Path | None = ..., referee: Sequence[str] = ...,
        seeds: Sequence[int] = ..., model: str = ..., model_prompt: str = ..., size: str | int | None = ...,
        mode: Literal['faithful', 'released', 'fixed'] = ..., method: Literal['doodl', 'plain', 'best-of', 'one-step',
        'one-step-noise'] = ..., init: str = ..., sampler: Literal['edict', 'bdia', 'o-belm', 'ddim'] | None = ...,
        chain_steps: int | None = ..., guidance: float | None = ..., p: float = ..., gamma: float = ...,
        steps: int | None = ..., crops: int = ..., scale: float | None = ..., clip: float | None = ...,
        momentum: float = ..., noise: float | None = ..., tied: bool | None = ..., classifier: str | None = ...,
        class_name: str | None = ..., classes: str | Path | None = ..., exemplar: Sequence[str] = ...,
        aesthetics: Sequence[str] = ..., aim: str = ..., loss: Any | None = ..., candidates: int | None = ...,
        one_step_scale: float = ..., stop_by: str | None = ..., patience: int = ..., checkpointing: bool = ...,
        batch_size: int = ..., save_frames: bool | None = ..., enlarge: Literal['nearest', 'bicubic'] = ...,
        channels_last: bool = ..., compile: bool = ..., resume: str | Path | None = ..., device: str = ...,
        dtype: str = ..., seed: int | None = ..., out: str | Path | None = ..., quick: bool = ...
    ) -> Result:
        """Optimise a diffusion model's noise by a referee's gradient through the whole sampling chain."""
    def inr(
        self, prompt: str | Sequence[str] = ..., *, prompts: str | Path | None = ..., referee: Sequence[str] = ...,
        seeds: Sequence[int] = ..., size: str | int | None = ..., render: str | int | None = ..., init: str = ...,
        candidates: int = ..., fit_steps: int = ..., width: int = ..., layers: int = ..., omega: float = ...,
        steps: int = ..., lr: float = ..., spread: float = ..., reference: str = ..., reference_pairs: int = ...,
        neighbours: int = ..., blending: float = ..., views: int = ..., batch_size: int = ...,
        save_frames: bool | None = ..., channels_last: bool = ..., compile: bool = ..., resume: str | Path | None = ...,
        device: str = ..., dtype: str = ..., seed: int | None = ..., out: str | Path | None = ..., quick: bool = ...
    ) -> Result:
        """CLIP^-1: paint with a sine network per picture, towards text targets corrected for the modality gap."""
    def referee_can_play(
        self, prompt: str | Sequence[str] = ..., *, prompts: str | Path | None = ..., referee: Sequence[str] = ...,
        seeds: Sequence[int] = ..., model: str = ..., size: str | int | None = ..., mode: Literal['faithful',
        'released', 'fixed'] = ..., init: str = ..., steps: int = ..., sds_only: int = ..., copies: int | None = ...,
        hardest: int | None = ..., noise_scale: float = ..., added_noise: float | None = ..., vlm: bool = ...,
        sds: bool = ..., optimiser: Literal['adam', 'sgd'] | None = ..., lr: float | None = ..., w1: float = ...,
        sds_weight: float = ..., sds_last: float = ..., guidance: float | None = ..., weighting: Literal['constant',
        'one minus alpha'] = ..., noise: float = ..., ema: Literal['restart', 'plain', 'none'] = ...,
        ema_decay: float = ..., ema_start: int = ..., ema_period: int = ..., matching: float = ...,
        captioning: float = ..., sds_prompt: str = ..., gradients: bool = ..., slicing: bool = ...,
        checkpointing: bool = ..., best_of: int = ..., by: str | None = ..., batch_size: int = ...,
        save_frames: bool | None = ..., enlarge: Literal['nearest', 'bicubic'] = ..., channels_last: bool = ...,
        compile: bool = ..., resume: str | Path | None = ..., device: str = ..., dtype: str = ...,
        seed: int | None = ..., out: str | Path | None = ..., quick: bool = ...
    ) -> Result:
        """Optimise diffusion latents by a pair reader's matching loss and Score Distillation."""
    def vqgan(
        self, prompt: str | Sequence[str] = ..., *, prompts: str | Path | None = ..., referee: Sequence[str] = ...,
        seeds: Sequence[int] = ..., model: str = ..., size: str | int | None = ..., mode: Literal['faithful',
        'fixed'] = ..., init: str = ..., candidates: int = ..., steps: int = ..., optimiser: Literal['adam', 'adamw',
        'adagrad', 'adamax', 'radam', 'rmsprop'] = ..., lr: float = ..., cut_method: Literal['latest',
        'original'] = ..., views: int = ..., cut_pow: float = ..., cut_min: int | None = ...,
        augment: bool | None = ..., init_weight: float = ..., prior: Literal['zero', 'start'] | None = ...,
        best_of: int = ..., by: str | None = ..., batch_size: int = ..., save_frames: bool | None = ...,
        enlarge: Literal['nearest', 'bicubic'] = ..., channels_last: bool = ..., compile: bool = ...,
        resume: str | Path | None = ..., device: str = ..., dtype: str = ..., seed: int | None = ...,
        out: str | Path | None = ..., quick: bool = ...
    ) -> Result:
        """VQGAN+CLIP: optimise the codes of a VQGAN by a referee."""

synthesize: _Synthesize
