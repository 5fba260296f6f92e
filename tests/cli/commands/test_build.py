import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hybrid_deploy.bundle import bundle as bundle_module
from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import GraphSpec, Precision, Variant
from hybrid_deploy.cache_dir import CACHE_VARIABLE
from hybrid_deploy.cli.commands.build import build
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BuildError, InputError, UsageError
from hybrid_deploy.runtime.engines import build as engine
from hybrid_deploy.runtime.engines.build import EngineRecord
from hybrid_deploy.runtime.host import local_gpu
from hybrid_deploy.target import Target


class TwoVariants(Bundle):
    """A bundle with two variants and no files: what the command reads of it."""

    def __init__(self) -> None:
        graph = GraphSpec("step.onnx", (), ())
        precision = Precision("fp32", "fp32")
        variant = Variant(precision, opset=24, encoder=graph, step=graph, prefill=graph)
        manifest = type("Manifest", (), {"variants": {"fp32": variant, "fp16": variant}})
        super().__init__(folder=Path("tiny.bundle"), manifest=manifest())


@pytest.fixture(autouse=True)
def fake_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_engine(
        bundle: Bundle, variant: str, role: GraphRole, target: Target, **_: object
    ) -> EngineRecord:
        if (variant, role) == ("fp32", GraphRole.STEP):
            raise BuildError("fp32/step: TensorRT did not build it")
        cached = role is GraphRole.ENCODER
        return EngineRecord(
            role, variant, str(target), Path("engine.plan"), 1.234, 2_340_000, "key", cached
        )

    monkeypatch.setattr(engine, "build_engine", build_engine)
    monkeypatch.setattr(bundle_module, "open_bundle", lambda path: TwoVariants())
    monkeypatch.setattr(local_gpu, "local_gpu", lambda: None)
    monkeypatch.setenv(CACHE_VARIABLE, "/kept")


def run(*options: str) -> Result:
    return CliRunner().invoke(build, ["tiny.bundle", *options])


def test_one_row_per_engine_and_what_was_not_checked() -> None:
    result = run("--target", "rtx:sm_86", "--variant", "fp16")
    assert result.exception is None
    header, _, *rows = (line.split() for line in result.stdout.splitlines())
    assert header == ["variant", "graph", "target", "s", "MB", "result"]
    assert rows == [
        ["fp16", "encoder", "rtx:sm_86", "1.23", "2.34", "from", "cache"],
        ["fp16", "prefill", "rtx:sm_86", "1.23", "2.34", "built"],
        ["fp16", "step", "rtx:sm_86", "1.23", "2.34", "built"],
    ]
    assert result.stderr == (
        "2 engines built, 1 from the cache /kept/engines. Not run: no GPU at hand, so neither "
        "their results nor their speed were checked.\n"
    )


def test_failed_row_does_not_stop_the_others() -> None:
    result = run("--target", "rtx:sm_86", "--target", "rtx:any", "--format", "json")
    rows = json.loads(result.stdout)
    assert len(rows) == 12
    assert [row["result"] for row in rows].count("failed") == 2
    assert rows[2] == {
        "variant": "fp32",
        "graph": "step",
        "target": "rtx:sm_86",
        "seconds": None,
        "mb": None,
        "result": "failed",
        "layers": None,
    }
    assert "failed: fp32/step: TensorRT did not build it\n" in result.stderr
    assert isinstance(result.exception, BuildError)
    assert str(result.exception) == "2 of 12 engines were not built; the reasons are above"


@pytest.mark.parametrize(
    ("output_format", "first", "last"),
    [
        (
            "csv",
            "variant,graph,target,seconds,mb,result",
            "fp16,step,rtx:any,1.23,2.34,built",
        ),
        (
            "md",
            "| variant | graph | target | s | MB | result |",
            "| fp16 | step | rtx:any | 1.23 | 2.34 | built |",
        ),
    ],
)
def test_formats(output_format: str, first: str, last: str) -> None:
    result = run("--target", "rtx:any", "--variant", "fp16", "--format", output_format)
    lines = result.stdout.splitlines()
    assert (lines[0], lines[-1]) == (first, last)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--target", "rtx:sm_99"), UsageError),
        (("--target", "rtx:any", "--variant", "int3"), InputError),
    ],
)
def test_wrong_request_builds_nothing(options: tuple[str, ...], error: type[Exception]) -> None:
    result = run(*options)
    assert isinstance(result.exception, error)
    assert result.stdout == ""
