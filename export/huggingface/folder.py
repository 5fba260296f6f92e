"""Reads the settings of a Hugging Face model folder with the precedence of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid_deploy.errors import ExportError, InputError

PICTURE_SIZE = (224, 224)
"""Width and height of the pictures that a folder is exported for if nobody tells them."""

_DECODER_PARTS = ("decoder", "text_config", "generator")
_ENCODER_PARTS = ("encoder", "vision_config", "audio_config")


@dataclass(frozen=True)
class ModelFolder:
    """The settings of a folder that `save_pretrained` wrote.

    Attributes:
        path: path of the folder.
        model: content of `config.json`, completed with the defaults of its class.
        generation: content of `generation_config.json`; None if the file does not exist, and then
            `model` has the generation settings.
        warnings: one line for each setting that the bundle does not follow.
        picture_size: width and height of the pictures that the folder is exported for; it matters
            where the number of tiles or patches follows from them.
    """

    path: Path
    model: Mapping[str, Any]
    generation: Mapping[str, Any] | None
    warnings: list[str] = field(default_factory=list)
    picture_size: tuple[int, int] = PICTURE_SIZE

    @property
    def model_type(self) -> str:
        """The `model_type` of the config, such as `whisper`; empty if it has none."""
        return str(self.model.get("model_type", ""))

    @property
    def architecture(self) -> str:
        """The name of the model's class; empty if the config names none."""
        return str((self.model.get("architectures") or ("",))[0])

    def decoder_value(self, name: str) -> Any:
        """Returns a setting of the model, else of its decoder; None if neither has it."""
        return self._model_value(name, _DECODER_PARTS)

    def encoder_value(self, name: str) -> Any:
        """Returns a setting of the encoder, else of the model; None if neither has it."""
        parts = [self.model.get(part) for part in _ENCODER_PARTS]
        for part in (*parts, self.model):
            if isinstance(part, Mapping) and part.get(name) is not None:
                return part[name]
        return None

    def generation_value(self, name: str) -> Any:
        """Returns a setting of generate(); None if the folder does not have it.

        As in transformers, `config.json` counts only if `generation_config.json` does not exist.
        """
        if self.generation is not None:
            return self.generation.get(name)
        return self.decoder_value(name)

    def token(self, name: str) -> Any:
        """Returns a special token from the generation settings, else from the model's config."""
        value = self.generation_value(name)
        return self.decoder_value(name) if value is None else value

    def read(self, name: str) -> dict[str, Any] | None:
        """Returns the content of a JSON file of the folder; None if it does not exist.

        Raises:
            InputError: the file is not a JSON object.
        """
        return _read_json(self.path / name)

    def warn(self, line: str) -> None:
        """Adds a warning of one line."""
        self.warnings.append(line)

    def _model_value(self, name: str, parts: tuple[str, ...]) -> Any:
        for part in (self.model, *(self.model.get(part) for part in parts)):
            if isinstance(part, Mapping) and part.get(name) is not None:
                return part[name]
        return None


def open_folder(
    path: Path, model_config: Any, picture_size: tuple[int, int] = PICTURE_SIZE
) -> ModelFolder:
    """Returns the settings of a folder.

    Args:
        path: path of the folder.
        model_config: config of the loaded model, which has the defaults that `config.json` leaves
            out; None reads only the file.
        picture_size: width and height of the pictures that the folder is exported for.

    Raises:
        InputError: the folder does not exist, or a file is not a JSON object.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; give one that save_pretrained has written")
    defaults = {} if model_config is None else model_config.to_dict()
    model = defaults | (_read_json(path / "config.json") or {})
    if not model:
        raise InputError(f"{path} has no config.json; give a folder that save_pretrained wrote")
    generation = _read_json(path / "generation_config.json")
    return ModelFolder(path, model, generation, picture_size=picture_size)


def token_ids(value: Any, name: str) -> tuple[int, ...]:
    """Returns the token ids of a setting that is None, one id or a list.

    Args:
        value: value of the setting.
        name: name of the setting, for the message.

    Raises:
        ExportError: the value is something else.
    """
    listed = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(token, int) for token in listed):
        raise ExportError(f"{name} is {value!r}, token ids were expected; correct it in the config")
    return tuple(listed)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}; copy the folder again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object; copy the folder again")
    return content
