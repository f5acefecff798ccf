"""Finds and reads the tensors that `backbone.weights` names."""

import hashlib
import io
import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melanoma_spark import config, lineage, logs
from melanoma_spark.errors import ConfigError
from melanoma_spark.models import backbones
from melanoma_spark.storage import files

FILE_VARIABLE = "MELANOMA_WEIGHTS"
RANDOM = "random"
NAME_ANOTHER = "name a readable file, or `imagenet`"


@dataclass(frozen=True)
class Weights:
    """A base's tensors in Keras's order, where they came from, and the id of their content."""

    tensors: tuple[NDArray[np.float32], ...]
    origin: str
    content_id: str


def resolve(settings: config.Backbone, seed: int) -> Weights:
    """Read and check the weights that the settings name.

    `imagenet` is the file named by MELANOMA_WEIGHTS, else the one in Keras's cache, else (never with `allow_random`)
    Keras's own download. Its tensors must be the published ones. A path or URL is that file, with any tensors of the
    right shapes. Raises `ConfigError` with what was tried and how to fix it.
    """
    spec = backbones.backbone(settings.name)
    if settings.weights == RANDOM:
        return _random(settings.name, seed)
    if settings.weights != "imagenet":
        return _from_file(settings.weights, settings.weights)
    path = find_imagenet(settings.name)
    if path is None and settings.allow_random:
        return _random(settings.name, seed)
    path = path or Path(_download(settings.name))
    weights = _from_file(str(path), "imagenet")
    # Compare tensors where their id is known, because a copy may be another file; else the file that Keras names.
    if weights.content_id != spec.imagenet_id and _md5(path) != spec.imagenet_md5:
        raise ConfigError(
            f"{path} does not hold the published ImageNet weights of {settings.name} (content id {weights.content_id}, "
            f"expected {spec.imagenet_id}); to use them anyway name the file itself: backbone.weights={path}"
        )
    return weights


def locate(settings: config.Backbone) -> str:
    """The place of the weights that the settings name, empty where Keras would download them; nothing is read.

    Raises `ConfigError` where they are missing.
    """
    if settings.weights not in ("imagenet", RANDOM):
        if not files.exists(files.url_of(settings.weights)):
            raise ConfigError(f"backbone.weights: {settings.weights} does not exist; {NAME_ANOTHER}")
        return settings.weights
    path = find_imagenet(settings.name) if settings.weights == "imagenet" else None
    return str(path) if path else RANDOM if settings.allow_random else ""


def resolve_again(settings: config.Backbone, seed: int, made_with: str) -> Weights:
    """`resolve` the weights that features/ were made with. Raises `ConfigError` where the settings name others."""
    weights = resolve(settings, seed)
    if weights.content_id != made_with:
        raise ConfigError(
            f"features/ was made with weights {made_with}, the settings name {weights.origin} weights "
            f"{weights.content_id}; run `melanoma-spark featurize` with these settings first"
        )
    return weights


def announce(weights: Weights) -> None:
    """Log where random weights are used: their features mean nothing."""
    if weights.origin == RANDOM:
        logs.warning("random weights are used, for this demo only: no ImageNet weights on this machine (docs/train.md)")


def find_imagenet(name: str) -> Path | None:
    """Find ImageNet weights on this machine: MELANOMA_WEIGHTS, Keras's cache, `shared/weights` next to the checkout."""
    named = os.environ.get(FILE_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise ConfigError(f"{FILE_VARIABLE} names {named}, which is no file; correct or unset it")
        return Path(named)
    file_name = backbones.backbone(name).imagenet_file
    keras_home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    shared = lineage.checkout().parent / "shared" / "weights"
    return next((path for path in (keras_home / "models" / file_name, shared / file_name) if path.is_file()), None)


def read_hdf5(content: bytes, what: str) -> list[NDArray[np.float32]]:
    """Read the tensors of a Keras HDF5 weights file, in the order of its layers. Nothing in the file is executed.

    Raises `ConfigError` where the content is something else.
    """
    import h5py

    try:
        with h5py.File(io.BytesIO(content), "r") as archive:
            root = archive.get("model_weights", archive)
            return [
                np.asarray(root[layer][weight], dtype=np.float32)
                for layer in _texts(root.attrs["layer_names"])
                for weight in _texts(root[layer].attrs["weight_names"])
            ]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{what} is not a Keras HDF5 weights file: {str(error).splitlines()[0]}") from None


def _texts(names: NDArray[Any]) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _from_file(url: str, origin: str) -> Weights:
    try:
        content = files.read_bytes(files.url_of(url))
    except Exception as error:
        raise ConfigError(f"backbone.weights: {error}; {NAME_ANOTHER}") from None
    tensors = read_hdf5(content, url)
    return Weights(tuple(tensors), origin, lineage.tensors_id(tensors))


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _random(name: str, seed: int) -> Weights:
    tensors = backbones.random_weights(name, seed)
    return Weights(tuple(tensors), RANDOM, lineage.tensors_id(tensors))


def _download(name: str) -> str:
    spec = backbones.backbone(name)
    try:  # Keras checks the file's hash and keeps it in its cache
        getattr(import_module(spec.module), spec.function)(include_top=False, weights="imagenet")
    except Exception as error:
        raise ConfigError(
            f"no ImageNet weights of {name} on this machine, and Keras could not download them "
            f"({str(error).splitlines()[0][:200]}); set {FILE_VARIABLE} to a copy of {spec.imagenet_file}, or put it "
            "into ~/.keras/models"
        ) from None
    path = find_imagenet(name)
    if path is None:
        raise ConfigError(f"Keras downloaded the weights of {name}, but not to ~/.keras/models/{spec.imagenet_file}")
    return str(path)
