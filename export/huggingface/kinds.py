"""Says in one line what a Hugging Face model is that has no decoder to export, or none we know.

The line comes before any tensor is computed, so it costs nothing for a model of any size.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    PreTrainedModel,
)

from hybrid_deploy.errors import UnsupportedModelError

SUPPORTED = (
    "VisionEncoderDecoder, SpeechEncoderDecoder, EncoderDecoder, Whisper, Speech2Text, Moonshine, "
    "Canary, CohereAsr, SpeechT5 to text, SeamlessM4T to text, BART, mBART, M2M100, Marian, "
    "Pegasus, BlenderBot, MVP, FSMT, T5, UMT5, LongT5, T5Gemma, Switch, Pix2Struct, PP-FormulaNet, "
    "Florence-2, BLIP captioning; with the image or sound before the text: LLaVA, LLaVA-NeXT, "
    "LLaVA-OneVision, VipLLaVA, Idefics3, SmolVLM, InternVL, Aya Vision, Cohere2 Vision, "
    "GOT-OCR2, Qwen2-VL, Qwen2.5-VL, BLIP-2, Kosmos-2, GIT, Qwen2-Audio, PaliGemma, InstructBLIP"
)
_SCOPE = "hybrid-deploy exports autoregressive decoders behind an encoder of images, sound or text"
_WRAPPER = (
    "write a small class around it with encode(inputs) -> memory and decode(tokens, memory) -> "
    "logits"
)

_BETWEEN = (
    "is a language model whose layers attend to an image or a protein while they read a prompt, "
    f"which no adapter here knows; {_WRAPPER}"
)
_LOOP = f"decodes in a loop inside its forward(), of which no step can be exported; {_WRAPPER}"
_BESIDE = "reads the sound beside its own tokens, a frame for each token"

_BY_CLASS = {
    "BigBirdPegasusForConditionalGeneration": (
        "reads with block-sparse attention, which picks random blocks; load it with "
        "attention_type='original_full'"
    ),
    "BlipForQuestionAnswering": (
        "answers with a decoder behind an encoder of the question, which no adapter here knows; "
        f"{_WRAPPER}"
    ),
    "EvollaForProteinText2Text": _BETWEEN,
    "IdeficsForVisionText2Text": _BETWEEN,
    "KyutaiSpeechToTextForConditionalGeneration": _BESIDE,
    "LEDForConditionalGeneration": (
        "reads with windowed attention whose global positions depend on the values of the input"
    ),
    "MllamaForConditionalGeneration": _BETWEEN,
    "MvpForConditionalGeneration": (
        "puts a trained prompt in front of the keys of its self-attention, whose cache has no such "
        "form here"
    ),
    "NllbMoeForConditionalGeneration": (
        "drops tokens by the load of its experts over the whole batch, so a sequence depends on "
        "its neighbours"
    ),
    "Pop2PianoForConditionalGeneration": (
        f"reads features behind the token of a composer, which no adapter here knows; {_WRAPPER}"
    ),
    "ProphetNetForConditionalGeneration": (
        "predicts several future tokens with streams of its decoder that have no incremental form"
    ),
    "SLANeXtForTableRecognition": _LOOP,
    "SLANetForTableRecognition": _LOOP,
    "T5Gemma2ForConditionalGeneration": (
        "joins the memory and its own tokens in one attention, whose cache has no such form here"
    ),
    "UdopForConditionalGeneration": (
        "reads words, their boxes and an image, and drops image patches by the values of the boxes"
    ),
    "VoxtralRealtimeForConditionalGeneration": _BESIDE,
}
"""What an encoder-decoder does that has no counterpart here, by its class."""

_SOUND = "a model that emits sound or several codebooks in each step, not tokens of one vocabulary"
_BY_NAME: tuple[tuple[str, str], ...] = (
    (r"ForCTC$", "a CTC model: it labels every frame at once, no decoder reads its own tokens"),
    (
        r"For(RNNT|TDT|Transducer)$|Transducer",
        "a transducer: its decoder advances along the frames of the sound, not token by token",
    ),
    (r"^(Dia|Musicgen|MusicgenMelody|Moshi|Csm|HiggsAudioV2|PocketTTS)For", _SOUND),
    (r"^(Qwen2_5Omni|Qwen3OmniMoe|VibeVoice)ForConditionalGeneration$", _SOUND),
    (r"^(Bark|FastSpeech2Conformer|Vits)", _SOUND),
    (r"For(TextToSpeech|TextToSpectrogram|SpeechToSpeech|TextToWaveform)$", _SOUND),
    (r"TTSFor|TextToUnitFor|TextToUnitModel$|TalkerFor|TalkerCodePredictor", _SOUND),
    (r"^PI0For", "a model that emits the movements of a robot, not tokens"),
    (r"BlockDiffusion$", "a diffusion model: it fills blocks of tokens in any order"),
)
"""What a model is, by a pattern of its class name."""

_GENERATES = (
    "ConditionalGeneration",
    "CausalLM",
    "TextToText",
    "SpeechToText",
    "VisionText2Text",
    "ProteinText2Text",
)

_READ = {
    "images": {"flattened_patches", "image_patches", "image_pixel_values", "pixel_values"},
    "sound": {"audio_input_features", "input_features", "input_values"},
}
"""What a language model reads beside its prompt, and the parameters of `forward` for it."""


def refusal(model: PreTrainedModel) -> UnsupportedModelError:
    """Returns the error that says what a model is and why it is not exported.

    Args:
        model: a model that no adapter fits.
    """
    name = type(model).__name__
    what = known_refusal(model)
    if what is not None:
        return UnsupportedModelError(f"{name} {what}; {_SCOPE}")
    if _has_encoder_and_decoder(model.config):
        if model.can_generate():
            what = f"is an encoder-decoder model with an interface of its own; {_WRAPPER}"
        else:
            what = (
                "is an encoder and decoder without a language head; load the class with the head, "
                f"such as {_family(name)}ForConditionalGeneration, or {_WRAPPER}"
            )
        return UnsupportedModelError(f"{name} {what} ({SUPPORTED} work as they are)")
    return UnsupportedModelError(f"{name} is {_without_decoder(model)}; {_SCOPE}")


def unknown_class(name: str) -> UnsupportedModelError:
    """Returns the error for a class that transformers does not have."""
    return UnsupportedModelError(
        f"{name} is not a model that hybrid-deploy supports ({SUPPORTED} "
        f"and models built like them); {_WRAPPER}"
    )


def known_refusal(model: PreTrainedModel) -> str | None:
    """Returns what a model is or does that has no counterpart here, as a clause; None if nothing.

    Args:
        model: any model of transformers.
    """
    for base in type(model).__mro__:
        if base.__name__ in _BY_CLASS and not _is_exempt(model):
            return _BY_CLASS[base.__name__]
        for pattern, what in _BY_NAME:
            if re.search(pattern, base.__name__):
                return f"is {what}"
        if (task := _other_task(base.__name__)) is not None:
            return f"is a model for {task}: it emits no tokens one by one"
        if base is PreTrainedModel:
            break
    return None


def _is_exempt(model: PreTrainedModel) -> bool:
    """Returns whether a config turns off what its class is refused for."""
    has_no_prompt = getattr(model.config, "use_prompt", True) is False  # MVP
    return has_no_prompt or getattr(model.config, "attention_type", None) == "original_full"


def _other_task(class_name: str) -> str | None:
    """Returns the task in a name such as ViTForImageClassification, if it is not generation."""
    match = re.search(r"For(?P<task>[A-Z]\w*)$", class_name)
    if match is None or match["task"] in _GENERATES:
        return None
    words: list[str] = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*", match["task"])
    return " ".join(word if word.isupper() else word.lower() for word in words)


def _has_encoder_and_decoder(config: Any) -> bool:
    text = getattr(config, "text_config", None)
    return bool(
        getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False)
    )


def _without_decoder(model: PreTrainedModel) -> str:
    """Returns what a model is that has no decoder behind an encoder."""
    parameters = set(inspect.signature(model.forward).parameters)
    reads = " and ".join(what for what, names in _READ.items() if not parameters.isdisjoint(names))
    if not model.can_generate() and not _is_decoder(model.config):
        return "an encoder without a decoder that emits tokens"
    if not reads:
        return "a decoder-only language model: it has no encoder whose memory the decoder reads"
    if not model.can_generate():
        return (
            f"a language model without its head that reads {reads}; load the class with the head, "
            f"such as {_class_with_head(model.config)}"
        )
    return (
        f"a language model that takes {reads} into its prompt in a way of its own; write a small "
        f"class whose encode returns the rows before the text, and whose decode(tokens, rows) runs "
        "the language model over cat([rows, embedded tokens], 1)"
    )


def _is_decoder(config: Any) -> bool:
    """Returns whether the models of a config are language models, not encoders."""
    return _class_with_head(config) is not None and type(config) not in MODEL_FOR_MASKED_LM_MAPPING


def _class_with_head(config: Any) -> str | None:
    """Returns the name of the class of a config that emits tokens; None if there is none."""
    for mapping in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        if type(config) in mapping:
            classes = mapping[type(config)]
            first = classes[0] if isinstance(classes, (list, tuple)) else classes
            return str(first.__name__)
    return None


def _family(class_name: str) -> str:
    return re.sub(r"(Encoder|Decoder)?Model$|PreTrainedModel$", "", class_name)
