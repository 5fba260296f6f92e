"""Tests the line that says what a model is which is not exported, word for word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="Hugging Face models need the extra 'hf'")

import transformers as hf

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.exporter import export_model
from hybrid_deploy.export.huggingface.adapter import encoder_inputs
from hybrid_deploy.export.huggingface.kinds import SUPPORTED

_SCOPE = "hybrid-deploy exports autoregressive decoders behind an encoder of images, sound or text"
_NO_TOKENS = "it emits no tokens one by one"
_SOUND = (
    "is a model that emits sound or several codebooks in each step, not tokens of one vocabulary"
)
_NO_ENCODER = "it has no encoder whose memory the decoder reads"
_OWN_WAY = (
    "is a language model that takes {} into its prompt in a way of its own; write a small class "
    "whose encode returns the rows before the text, and whose decode(tokens, rows) runs the "
    "language model over cat([rows, embedded tokens], 1)"
)
_CROSS_ATTENTION = (
    "reads images by cross-attention between the layers of a language model, with masks that "
    "depend on the places of the images in the prompt"
)
_TINY = {"num_hidden_layers": 1, "encoder_layers": 1, "decoder_layers": 1}

REFUSED = {
    "Wav2Vec2ForCTC": (
        "is a CTC model: it labels every frame at once, no decoder reads its own tokens"
    ),
    "ParakeetForTDT": (
        "is a transducer: its decoder advances along the frames of the sound, not token by token"
    ),
    "ViTForImageClassification": f"is a model for image classification: {_NO_TOKENS}",
    "BertForSequenceClassification": f"is a model for sequence classification: {_NO_TOKENS}",
    "BartForQuestionAnswering": f"is a model for question answering: {_NO_TOKENS}",
    "BertForMaskedLM": f"is a model for masked LM: {_NO_TOKENS}",
    "SpeechT5ForTextToSpeech": _SOUND,
    "DiaForConditionalGeneration": _SOUND,
    "BertModel": "is an encoder without a decoder that emits tokens",
    "T5EncoderModel": "is an encoder without a decoder that emits tokens",
    "GPT2LMHeadModel": f"is a decoder-only language model: {_NO_ENCODER}",
    "LlamaForCausalLM": f"is a decoder-only language model: {_NO_ENCODER}",
    "GPT2Model": f"is a decoder-only language model: {_NO_ENCODER}",
    "LlavaModel": (
        "is a language model without its head that reads images; load the class with the head, "
        "such as LlavaForConditionalGeneration"
    ),
    "Gemma3ForConditionalGeneration": _OWN_WAY.format("images"),
    "VoxtralForConditionalGeneration": _OWN_WAY.format("sound"),
    "MllamaForConditionalGeneration": _CROSS_ATTENTION,
    "IdeficsForVisionText2Text": _CROSS_ATTENTION,
    "BarkModel": _SOUND,
    "BigBirdPegasusForConditionalGeneration": (
        "reads with block-sparse attention, which picks random blocks; load it with "
        "attention_type='original_full'"
    ),
    "LEDForConditionalGeneration": (
        "reads with windowed attention whose global positions depend on the values of the input"
    ),
    "NllbMoeForConditionalGeneration": (
        "drops tokens by the load of its experts over the whole batch, so a sequence depends on "
        "its neighbours"
    ),
    "ProphetNetForConditionalGeneration": (
        "predicts several future tokens with streams of its decoder that have no incremental form"
    ),
    "T5Gemma2ForConditionalGeneration": (
        "joins the memory and its own tokens in one attention, whose cache has no such form here"
    ),
    "UdopForConditionalGeneration": (
        "reads words, their boxes and an image, and drops image patches by the values of the boxes"
    ),
}


def unbuilt(name: str) -> Any:
    """Returns a model of a class with its default config, on a device without storage."""
    model_class = getattr(hf, name)
    config = model_class.config_class()
    for part in filter(None, (config, getattr(config, "text_config", None))):
        for key in _TINY.keys() & part.to_dict().keys():
            setattr(part, key, _TINY[key])
        if getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[:1]
    with torch.device("meta"):
        return model_class(config).eval()


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_without_such_a_decoder_is_named_as_what_it_is(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        export_model(unbuilt(name), None, tmp_path / "b", max_length=8, start_tokens=1)
    assert str(caught.value) == f"{name} {REFUSED[name]}; {_SCOPE}"
    assert not (tmp_path / "b").exists()


def test_an_encoder_decoder_without_a_head_names_the_class_with_it() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        encoder_inputs(unbuilt("BartModel"))
    assert str(caught.value) == (
        "BartModel is an encoder and decoder without a language head; load the class with the "
        "head, such as BartForConditionalGeneration, or write a small class around it with "
        "encode(inputs) -> memory and decode(tokens, memory) -> logits "
        f"({SUPPORTED} work as they are)"
    )


def test_big_bird_with_full_attention_is_not_refused() -> None:
    config = hf.BigBirdPegasusConfig(attention_type="original_full", **_TINY)
    with torch.device("meta"):
        model = hf.BigBirdPegasusForConditionalGeneration(config)
    assert encoder_inputs(model) == ("input_ids", "attention_mask")


@pytest.mark.parametrize(
    "name",
    [
        "LlavaForConditionalGeneration",
        "Blip2ForConditionalGeneration",
        "InternVLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Kosmos2ForConditionalGeneration",
        "GitForCausalLM",
    ],
)
def test_a_language_model_with_an_image_before_the_text_is_not_refused(name: str) -> None:
    assert encoder_inputs(unbuilt(name)) == ("pixel_values",)
