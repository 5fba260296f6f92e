"""Tests what becomes of every generating class of transformers: it works, or one true line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="Hugging Face models need the extra 'hf'")

import transformers as hf
from transformers.models.auto import modeling_auto

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.exporter import export_model
from hybrid_deploy.export.huggingface.adapter import _adapter_of, encoder_inputs
from hybrid_deploy.export.huggingface.kinds import SUPPORTED

WORKS = "works"
_IMAGES = "is a language model that takes images into its prompt in a way of its own"
_SOUND = "is a language model that takes sound into its prompt in a way of its own"
_BOTH = "is a language model that takes images and sound into its prompt in a way of its own"
_CTC = "is a CTC model: it labels every frame at once"
_EMITS_SOUND = "emits sound or several codebooks in each step, not tokens of one vocabulary"
_BETWEEN = "is a language model whose layers attend to an image or a protein while they read"
_TRANSDUCER = "is a transducer: its decoder advances along the frames of the sound"
_NO_TOKENS = "it emits no tokens one by one"

OUTCOMES: dict[str, str] = {
    WORKS: """
        AyaVision Bart Blenderbot BlenderbotSmall Blip Blip2 Canary Cohere2Vision CohereAsr
        EncoderDecoderModel Florence2 FSMT GitForCausalLM GotOcr2 Idefics3 InternVL Kosmos2
        Llava LlavaNext LlavaOnevision LongT5 M2M100 MarianMTModel MBart Moonshine
        MoonshineStreaming MT5 Mvp PaliGemma Pegasus PegasusX Pix2Struct PLBart PPFormulaNet
        Qwen2_5_VL Qwen2Audio Qwen2VL SeamlessM4TForSpeechToText SeamlessM4TForTextToText
        SeamlessM4Tv2ForSpeechToText SeamlessM4Tv2ForTextToText SmolVLM Speech2Text
        SpeechEncoderDecoderModel SpeechT5ForSpeechToText SwitchTransformers T5 T5Gemma UMT5
        VipLlava VisionEncoderDecoderModel Whisper""",
    _IMAGES: """
        Chameleon CohereCompass Cosmos3Edge Cosmos3Omni DeepseekVL DeepseekVLHybrid Emu3
        Ernie4_5_VLMoe FuyuForCausalLM Gemma3 Glm46V Glm4v Glm4vMoe Glm5Next GlmOcr
        HunYuanVL InstructBlip InstructBlipVideo Janus Kosmos2_5 MiniCPMOcr MiniCPMV4_6
        MiniCPMV4_7 Molmo2 PaddleOCRVL PerceptionLM Qwen3VL Qwen3VLMoe Qwen3_5 Qwen3_5Moe
        Qwen4Exp""",
    _SOUND: """
        VibeVoiceAsr Voxtral""",
    _BOTH: """
        Gemma3n Gemma4 Gemma4Unified NemotronH_Omni_Reasoning_V3 Phi4MultimodalForCausalLM""",
    _BETWEEN: "EvollaForProteinText2Text IdeficsForVisionText2Text Mllama",
    _EMITS_SOUND: """
        BarkModel Csm Dia FastSpeech2ConformerModel FastSpeech2ConformerWithHifiGan
        GradiumPhononTTS HiggsAudioV2 Musicgen MusicgenMelody PocketTTS Qwen2_5Omni Qwen3OmniMoe
        SeamlessM4TForTextToSpeech SeamlessM4Tv2ForTextToSpeech SpeechT5ForTextToSpeech VibeVoice
        VitsModel""",
    _CTC: """
        Data2VecAudioForCTC GraniteSpeech5ForCTC HubertForCTC LasrForCTC ParakeetForCTC SEWDForCTC
        SEWForCTC UniSpeechForCTC UniSpeechSatForCTC Wav2Vec2BertForCTC Wav2Vec2ConformerForCTC
        Wav2Vec2ForCTC WavLMForCTC""",
    _TRANSDUCER: "Nemotron3_5AsrForRNNT NemotronAsrStreamingForRNNT ParakeetForRNNT ParakeetForTDT",
    "is a decoder-only language model: it has no encoder": """
        CpmAntForCausalLM GPT2LMHeadModel LlamaForCausalLM Mistral4ForCausalLM""",
    "reads the sound beside its own tokens, a frame for each": "KyutaiSpeechToText VoxtralRealtime",
    "block-sparse attention, which picks random blocks; load it with attention_type": (
        "BigBirdPegasus"
    ),
    "reads with windowed attention whose global positions depend on the values": "LED",
    "drops tokens by the load of its experts over the whole batch": "NllbMoe",
    "reads features behind the token of a composer": "Pop2Piano",
    "predicts several future tokens with streams of its decoder": "ProphetNet",
    "joins the memory and its own tokens in one attention": "T5Gemma2",
    "reads words, their boxes and an image, and drops image patches": "Udop",
    "answers with a decoder behind an encoder of the question": "BlipForQuestionAnswering",
    "decodes in a loop inside its forward()": (
        "SLANeXtForTableRecognition SLANetForTableRecognition"
    ),
    "emits the movements of a robot, not tokens": "PI0",
    "is a diffusion model: it fills blocks of tokens": "DiffusionGemmaForBlockDiffusion",
    "is an encoder without a decoder that emits tokens": "BertModel",
    "without its head that reads images; load the class with the head, such as Llava": "LlavaModel",
    f"is a model for scene text recognition: {_NO_TOKENS}": "MgpstrForSceneTextRecognition",
    f"is a model for text recognition: {_NO_TOKENS}": """
        PPOCRV5MobileRecForTextRecognition PPOCRV5ServerRecForTextRecognition
        PPOCRV6SmallRecForTextRecognition PPOCRV6TinyRecForTextRecognition""",
    f"is a model for image classification: {_NO_TOKENS}": "ViTForImageClassification",
    f"is a model for sequence classification: {_NO_TOKENS}": "BertForSequenceClassification",
    f"is a model for question answering: {_NO_TOKENS}": "BartForQuestionAnswering",
    f"is a model for masked LM: {_NO_TOKENS}": "BertForMaskedLM",
}
"""By the outcome: names of the classes; ForConditionalGeneration is left out."""

TRIED = """
    Aria AudioFlamingo3 DeepseekOcr2 Dots3Note Exaone4_5_ FastVlm FunAsrNano GlmAsr
    Granite4Vision GraniteDocling GraniteSpeech GraniteSpeechPlus HyperCLOVAXVisionV2 Idefics2
    Inkling Inkling2 Kimi_K25 Lfm2Vl Lfm3Vl LightOnOcr Llama4 LlavaNextVideo MiniMaxM3Sparse
    Mistral3 MistralLarge4 MossTranscribeDiarize MuseGlimmer MuseSpark MusicFlamingo
    Nemotron3_5Transcribe Ovis2 QianfanOCR Qwen2_5OmniThinker Qwen3ASR Qwen3OmniMoeThinker
    Step3p7 UnlimitedOcr VideoLlama3 VideoLlava
"""
"""Classes that the general adapter takes and no case here proves: `adapt` compares their logits."""

LISTS = (
    "CTC",
    "IMAGE_TEXT_TO_TEXT",
    "MULTIMODAL_LM",
    "RNNT",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "TABLE_RECOGNITION",
    "TDT",
    "TEXT_RECOGNITION",
    "TEXT_TO_SPECTROGRAM",
    "TEXT_TO_WAVEFORM",
)
"""Lists of transformers' auto classes whose models emit tokens, or sound."""

_SHORT = "ForConditionalGeneration"
EXPECTED = {name: words for words, names in OUTCOMES.items() for name in names.split()}
EXPECTED |= dict.fromkeys(TRIED.split(), WORKS)


def listed() -> set[str]:
    """Returns the names of the generating classes of the installed transformers, shortened."""
    mappings = (getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES", {}) for name in LISTS)
    values = (value for mapping in mappings for value in mapping.values())
    names = (n for value in values for n in ((value,) if isinstance(value, str) else value))
    return {name.removesuffix(_SHORT) for name in names if hasattr(hf, name)}


def without_layers(name: str) -> Any:
    """Returns a model of a class that has its default config, and no layers."""
    model_class = getattr(hf, name, None) or getattr(hf, name + _SHORT)
    model = model_class.__new__(model_class)
    nn.Module.__init__(model)
    model.config = model_class.config_class()
    return model


def outcome(name: str) -> str:
    """Returns `works`, or the line with which a class is refused."""
    try:
        _adapter_of(without_layers(name))
    except UnsupportedModelError as error:
        return str(error)
    return WORKS


def test_every_generating_class_works_or_is_named_as_what_it_is() -> None:
    names = listed() | {n for n in EXPECTED if hasattr(hf, n) or hasattr(hf, n + _SHORT)}
    actual = {name: outcome(name) for name in names}
    changed = {n: line for n, line in actual.items() if EXPECTED.get(n, "\n") not in line}
    assert not changed, "\n".join(f"{name}: {line}" for name, line in sorted(changed.items()))


REFUSED = {
    hf.Wav2Vec2ForCTC: f"{_CTC}, no decoder reads its own tokens",
    hf.T5EncoderModel: "is an encoder without a decoder that emits tokens",
}


@pytest.mark.parametrize("model_class", REFUSED)
def test_a_refused_model_is_named_before_anything_is_computed(
    model_class: Any, tmp_path: Path
) -> None:
    with torch.device("meta"):
        model = model_class(model_class.config_class(num_hidden_layers=1, num_layers=1))
    with pytest.raises(UnsupportedModelError) as caught:
        export_model(model, None, tmp_path / "b", max_length=8, start_tokens=1)
    assert str(caught.value) == (
        f"{model_class.__name__} {REFUSED[model_class]}; hybrid-deploy exports autoregressive "
        "decoders behind an encoder of images, sound or text"
    )
    assert not (tmp_path / "b").exists()


def test_an_encoder_decoder_without_a_head_names_the_class_with_it() -> None:
    assert outcome("BartModel") == (
        "BartModel is an encoder and decoder without a language head; load the class with the "
        "head, such as BartForConditionalGeneration, or write a small class around it with "
        "encode(inputs) -> memory and decode(tokens, memory) -> logits "
        f"({SUPPORTED} work as they are)"
    )


def test_a_config_can_turn_off_what_its_class_is_refused_for() -> None:
    model = without_layers("BigBirdPegasus")
    model.config.attention_type = "original_full"
    assert encoder_inputs(model) == ("input_ids", "attention_mask")
    model = without_layers("Mvp")
    model.config.use_prompt = True
    with pytest.raises(UnsupportedModelError, match="a trained prompt in front of the keys"):
        encoder_inputs(model)
