"""Folders of small images and recordings whose class can be seen and heard, and random base models that read them."""

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

CLASSES = ("ash", "bay", "elm")
RATE = 16_000


def write_images(folder: Path, classes: tuple[str, ...] = CLASSES, each: int = 8, seed: int = 0) -> Path:
    """Noise, and one row of it bright: which one is the class."""
    random = np.random.default_rng(seed)
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 120, (8, 8, 3), dtype=np.uint8)
            pixels[2 * index + 1] = 255
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def write_recordings(folder: Path, classes: tuple[str, ...] = CLASSES, each: int = 8, seed: int = 0) -> Path:
    """A third of a second of noise and a tone: how high it is is the class."""
    random = np.random.default_rng(seed)
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            time = np.arange(RATE // 3 + 40 * number) / RATE
            samples = 0.3 * np.sin(2 * np.pi * 300 * (index + 1) * time) + 0.02 * random.standard_normal(len(time))
            soundfile.write(folder / name / f"{number}.wav", samples, RATE)
    return folder


def image_base(folder: Path) -> str:
    """A random ViT of two blocks and width 16, without a head, for images of 8 x 8 pixels."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return str(folder)


def audio_base(folder: Path) -> str:
    """A random wav2vec2 of two blocks and width 16, without a head, with as many frames a second as the real ones."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(  # type: ignore[call-arg]
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=[8, 8],
        conv_kernel=[20, 16],
        conv_stride=[20, 16],
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE).save_pretrained(folder)
    return str(folder)


# By the type of a task: what writes its files, and its base model.
KINDS = {"image": (write_images, image_base), "audio": (write_recordings, audio_base)}
