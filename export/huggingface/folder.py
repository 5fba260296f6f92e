"""The settings in a Hugging Face model folder, looked up where transformers looks them up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid_deploy.errors import ExportError, InputError

_DECODER_PARTS = ("decoder", "text_config", "generator")
_ENCODER_PARTS = ("encoder", "vision_config", "audio_config")


@dataclass(frozen=True)
class ModelFolder:
    """The JSON files of a folder as `save_pretrained` writes it.

    Attributes:
        path: the folder.
        model: `config.json`, completed with the defaults of its class.
        generation: `generation_config.json`; None if there is none, and `model` has its settings.
        warnings: what was found and is not carried over, one line each.
    """

    path: Path
    model: Mapping[str, Any]
    generation: Mapping[str, Any] | None
    warnings: list[str] = field(default_factory=list)

    @property
    def model_type(self) -> str:
        """The kind of model, as transformers calls it."""
        return str(self.model.get("model_type", ""))

    @property
    def architecture(self) -> str:
        """The class of the model."""
        return str((self.model.get("architectures") or ("",))[0])

    def decoder_value(self, name: str) -> Any:
        """Returns a setting of the model or of its decoder; None if there is none."""
        return self._model_value(name, _DECODER_PARTS)

    def encoder_value(self, name: str) -> Any:
        """Returns a setting of the model's encoder or of the model; None if there is none."""
        parts = [self.model.get(part) for part in _ENCODER_PARTS]
        for part in (*parts, self.model):
            if isinstance(part, Mapping) and part.get(name) is not None:
                return part[name]
        return None

    def generation_value(self, name: str) -> Any:
        """Returns a setting of generate(); None if there is none.

        As in transformers, a `generation_config.json` makes those in `config.json` void.
        """
        if self.generation is not None:
            return self.generation.get(name)
        return self.decoder_value(name)

    def token(self, name: str) -> Any:
        """Returns a special token of generate(), which falls back to the model's."""
        value = self.generation_value(name)
        return self.decoder_value(name) if value is None else value

    def read(self, name: str) -> dict[str, Any] | None:
        """Reads a JSON file of the folder; None if there is none.

        Raises:
            InputError: the file is no JSON object.
        """
        return _read_json(self.path / name)

    def warn(self, line: str) -> None:
        """Notes what is not carried over."""
        self.warnings.append(line)

    def _model_value(self, name: str, parts: tuple[str, ...]) -> Any:
        for part in (self.model, *(self.model.get(part) for part in parts)):
            if isinstance(part, Mapping) and part.get(name) is not None:
                return part[name]
        return None


def open_folder(path: Path, model_config: Any) -> ModelFolder:
    """Reads a folder.

    Args:
        path: the folder.
        model_config: the config of the loaded model, which has the defaults that the file leaves
            out; None takes the file alone.

    Raises:
        InputError: there is no such folder, or a file is no JSON object.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; give one that save_pretrained has written")
    defaults = {} if model_config is None else model_config.to_dict()
    model = defaults | (_read_json(path / "config.json") or {})
    if not model:
        raise InputError(f"{path} has no config.json; give a folder that save_pretrained wrote")
    return ModelFolder(path, model, _read_json(path / "generation_config.json"))


def token_ids(value: Any, name: str) -> tuple[int, ...]:
    """Returns token ids that are written as none, one or a list.

    Raises:
        ExportError: they are something else.
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
