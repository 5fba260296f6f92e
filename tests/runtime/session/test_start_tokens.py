"""Language and task of a call, compared with `generate()` of transformers."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from hybrid_deploy import GenerateOptions, load_session
from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.speech.speech_tokens import SpeechTokens
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.session.session import Session
from tests.conftest import TinyWhisper
from tests.models.tiny_whisper import (
    DE,
    EN,
    END,
    FR,
    NO_TIMESTAMPS,
    PREVIOUS,
    START,
    TRANSCRIBE,
    TRANSLATE,
    features_of,
    generated_tokens,
    sound,
)

INPUT = "input_features"


@pytest.fixture(scope="module")
def session(tiny_whisper: TinyWhisper) -> Session:
    return load_session(tiny_whisper.path, threads=1)


def generated(tiny: TinyWhisper, features: torch.Tensor, **options: object) -> list[int]:
    return generated_tokens(tiny.model, features, return_timestamps=False, **options)


def run(session: Session, features: torch.Tensor, **options: object) -> list[int]:
    (result,), _ = session.run_arrays(
        {INPUT: features.numpy()},
        options=GenerateOptions(**options),  # type: ignore[arg-type]
    )
    return [token for token in result.tokens if token != END]


def test_the_bundle_remembers_the_choices(session: Session) -> None:
    manifest = session.bundle.manifest
    assert manifest.generation.start_tokens == (START, EN, TRANSCRIBE, NO_TIMESTAMPS)
    assert manifest.speech == SpeechTokens(
        start=START,
        languages={"de": DE, "en": EN, "fr": FR},
        tasks={"translate": TRANSLATE, "transcribe": TRANSCRIBE},
        no_timestamps=NO_TIMESTAMPS,
        previous=PREVIOUS,
        no_speech=NO_TIMESTAMPS - 1,
    )


def test_language_and_task_are_those_of_transformers(
    session: Session, tiny_whisper: TinyWhisper
) -> None:
    outputs = set()
    for seed in range(3):
        features = features_of(sound(seed, 1.5))
        for language in ("en", "de", "fr"):
            for task in ("transcribe", "translate"):
                expected = generated(tiny_whisper, features, language=language, task=task)
                assert run(session, features, language=language, task=task) == expected
                outputs.add(tuple(expected))
        assert run(session, features) == run(session, features, language="en", task="transcribe")
    assert len(outputs) > 9, "the prompts must matter"


def test_detected_languages_are_those_of_transformers(
    session: Session, tiny_whisper: TinyWhisper
) -> None:
    features = torch.cat([features_of(sound(seed, 1.5)) for seed in range(12)])
    ids = tiny_whisper.model.detect_language(features).tolist()
    expected = [{DE: "de", EN: "en", FR: "fr"}[index] for index in ids]
    assert len(set(expected)) > 1, "the sounds must differ"
    options = GenerateOptions(language="auto")
    results, _ = session.run_arrays({INPUT: features.numpy()}, options=options)
    assert [result.language for result in results] == expected
    for row, result in zip(features, results, strict=True):
        alone = run(session, row[None], language=result.language)
        assert [token for token in result.tokens if token != END] == alone
    with session.encode({INPUT: features.numpy()}) as encoded:
        again, _ = session.run_encoded(encoded, options=options)
    assert again == results


def test_a_prompt_of_earlier_text_stands_before_the_start_tokens(
    session: Session, tiny_whisper: TinyWhisper
) -> None:
    features = features_of(sound(3, 1.0))
    given = [PREVIOUS, 11, 12, 13]
    options = GenerateOptions(language="de")
    (result,), _ = session.run_arrays({INPUT: features.numpy()}, prompt=given, options=options)
    expected = generated(tiny_whisper, features, prompt_ids=torch.tensor(given), language="de")
    start = (START, DE, TRANSCRIBE, NO_TIMESTAMPS)
    whole, _ = session.run_arrays(
        {INPUT: features.numpy()}, prompt=[*given, *start], options=options
    )
    assert whole[0] == result
    assert [token for token in result.tokens if token != END] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"language": "xx"},
            "the model has no language 'xx'; it has en, de, fr, or auto to detect it",
        ),
        ({"language": "German"}, "the model has no language 'German'"),
        ({"task": "sing"}, "the model has no task 'sing'; it has transcribe, translate"),
    ],
)
def test_what_the_model_lacks_is_refused(
    session: Session, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(session, features_of(sound(0, 1.0)), **options)


def test_many_languages_are_not_all_listed() -> None:
    codes = ["en", "de", *(f"x{index}" for index in range(30))]
    many = SpeechTokens(1, {code: index for index, code in enumerate(codes)})
    with pytest.raises(UsageError, match="it has en, de and 30 more, or auto to detect it"):
        many.start_tokens((1, 0), "nl")


@pytest.mark.parametrize("language", ["de", "auto"])
def test_a_model_of_one_language_is_told_none(
    session: Session, tiny_whisper: TinyWhisper, language: str
) -> None:
    english = SpeechTokens(START, no_timestamps=NO_TIMESTAMPS)
    inputs = {INPUT: features_of(sound(0, 1.0)).numpy()}
    options = GenerateOptions(language=language)
    with pytest.raises(UsageError, match="the model has one language and is not told which"):
        _session_with(session, english).run_arrays(inputs, options=options)
    with pytest.raises(UsageError, match="only transcribes and is told no task"):
        _session_with(session, english).run_arrays(inputs, options=GenerateOptions(task="x"))
    with pytest.raises(UsageError, match="knows no languages, tasks or timestamps"):
        _session_with(session, None).run_arrays(inputs, options=options)


def test_options_are_texts() -> None:
    with pytest.raises(UsageError, match="language must be a text, got 3"):
        GenerateOptions(language=3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="timestamps must be True or False, got 1"):
        GenerateOptions(timestamps=1)  # type: ignore[arg-type]


def test_timeout_before_the_language_is_known(session: Session) -> None:
    inputs = {INPUT: np.repeat(features_of(sound(0, 1.0)).numpy(), 2, 0)}
    options = GenerateOptions(language="auto", timeout_s=1e-9)
    results, _ = session.run_arrays(inputs, options=options)
    assert [result.finish for result in results] == ["timeout", "timeout"]


def _session_with(session: Session, speech: SpeechTokens | None) -> Session:
    manifest = msgspec.structs.replace(session.bundle.manifest, speech=speech)
    bundle: Bundle = replace(session.bundle, manifest=manifest)
    return Session(bundle, session.variant, session.backend)
