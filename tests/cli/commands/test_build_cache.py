"""`build` with TensorRT-RTX: layers, list and cleaning of the cache, and refusals."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hybrid_deploy.cache_dir import CACHE_VARIABLE, cache_folder
from hybrid_deploy.cli import main
from hybrid_deploy.runtime.engines import ram_check as build_memory
from hybrid_deploy.runtime.engines.cache import PLAN_FILE, EngineCache
from hybrid_deploy.runtime.engines.cache_listing import CachedEngine, list_engines

pytestmark = [
    pytest.mark.trt,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
    ),
]

TARGET = ("--target", "rtx:sm_86")
HOLD_LOCK = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def build(*options: object) -> Result:
    return CliRunner().invoke(main, ["build", *map(str, options)])


def build_json(*options: object) -> list[dict[str, object]]:
    result = build(*options, "--format", "json")
    assert result.exit_code == 0, result.stderr
    rows: list[dict[str, object]] = json.loads(result.stdout)
    return rows


@pytest.fixture(scope="module", autouse=True)
def built(
    tiny_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[dict[str, object]]]:
    """Returns the rows of the tiny bundle's engines; tests that delete engines come last."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield build_json(tiny_path, *TARGET)


def test_layers_are_those_of_the_finished_engine(built: list[dict[str, object]]) -> None:
    step = next(row["layers"] for row in built if row["graph"] == "step")
    assert isinstance(step, dict)
    assert (step["attentions"], step["caches_copied"]) == (2, [])
    assert step["caches_in_place"] == ["self_key_0", "self_value_0"]
    assert step["parsed"]["KV_CACHE_UPDATE"] == 2
    kinds = {kernels["kind"] for kernels in step["kernels"]}
    assert "gemm" in kinds
    assert step["weight_bytes"] > 0 and step["activation_bytes"] > 0
    types = {name for kernels in step["kernels"] for name in kernels["types"]}
    assert "fp32" in types and not types & {"fp16", "int8", "fp8"}


def test_layers_of_engines_in_the_cache(tiny_path: Path) -> None:
    result = build(tiny_path, *TARGET, "--layers")
    header, _, *rows = result.stdout.splitlines()
    assert header.split()[:4] == ["variant", "graph", "target", "attention"]
    assert [row.split()[1] for row in rows] == ["encoder", "prefill", "step"]
    assert "0 engines built, 3 from the cache" in result.stderr


def test_list_names_graph_target_and_version(
    built: list[dict[str, object]], tiny_path: Path
) -> None:
    rows = build_json("--list")
    assert {row["graph"] for row in rows} == {"encoder", "prefill", "step"}
    for row in rows:
        assert (row["bundle"], row["variant"], row["target"]) == ("tiny", "fp32", "rtx:sm_86")
        assert str(row["tensorrt"]).startswith("rtx ")
        assert row["damage"] is None and row["layers"] is not None
        assert 0 <= float(str(row["unused_days"])) <= float(str(row["age_days"])) < 1
    assert build_json(tiny_path, "--list", "--variant", "fp32") == rows
    assert build_json("--list", "--target", "rtx:any") == []


def test_engine_for_a_smaller_batch_needs_less_memory(
    built: list[dict[str, object]], tiny_path: Path
) -> None:
    result = build(tiny_path, *TARGET, "--profile", "batch=1:1:1", "--format", "json")
    assert "building fp32/step for rtx:sm_86, last time " in result.stderr
    narrow = json.loads(result.stdout)
    for before, after in zip(built, narrow, strict=True):
        assert after["result"] == "built"
        layers = before["layers"]
        assert isinstance(layers, dict)
        assert after["layers"]["activation_bytes"] < layers["activation_bytes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            (*TARGET, "--profile", "width=8:24:128"),
            "error: --profile width=8:24:128: the bundle was exported for width 8..64; "
            "stay within, or export it again\n",
        ),
        ((*TARGET, "--profile", "depth=1:1:1"), "the bundle has "),
        ((*TARGET, "--profile", "batch=4:1"), "expected NAME=MIN:TYPICAL:MAX"),
        ((), "Missing option '--target'."),
        (("--list", "--clean"), "exclude each other"),
        (("--older-than", "3"), "give --clean too"),
        (("--list", "--workspace", "3"), "leave them out here"),
        (("--clean", "--timeout", "3"), "leave them out here"),
        ((*TARGET, "--timeout", "0"), "0"),
        (
            (*TARGET, "--hardware-compatible"),
            "error: --hardware-compatible is an option of TensorRT; TensorRT-RTX has --target "
            "rtx:any, one engine for every GPU from Ampere on\n",
        ),
        (
            (*TARGET, "--version-compatible"),
            "error: --version-compatible is an option of TensorRT; engines of TensorRT-RTX run "
            "with the version that built them: leave it out, and build again after an update\n",
        ),
    ],
)
def test_wrong_request_is_one_line(tiny_path: Path, options: tuple[str, ...], message: str) -> None:
    result = build(tiny_path, *options)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert message in result.stderr


def test_workspace_that_is_too_small_is_reported_once_per_graph(tiny_path: Path) -> None:
    result = build(tiny_path, *TARGET, "--workspace", 1)
    assert result.exit_code == 1
    failed = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert failed
    assert all(line.endswith("give it more with --workspace") for line in failed)


def test_build_that_needs_more_memory_than_is_free_is_refused(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_memory, "free_ram_bytes", lambda: 100_000_000)
    result = build(tiny_path, "--target", "rtx:sm_89")
    assert result.exit_code == 1
    assert (
        "failed: fp32/encoder: building it takes about 0.3 GB of memory and 0.1 GB are free; "
        "close other programs, lower --workspace, or build on a larger machine\n"
    ) in result.stderr
    assert "building fp32" not in result.stderr


def test_build_that_takes_too_long_is_stopped(tiny_path: Path) -> None:
    result = build(tiny_path, "--target", "rtx:sm_89", "--timeout", 0.2)
    assert result.exit_code == 1
    assert (
        "failed: fp32/step: no engine after 0.2 s, so the build was stopped; give it longer with "
        "--timeout, or more memory if it hung\n"
    ) in result.stderr
    assert not [engine for engine in list_engines(EngineCache()) if _target(engine) == "rtx:sm_89"]


def _target(engine: CachedEngine) -> object:
    assert engine.record is not None
    return engine.record.shaped_by["target"]


def test_too_little_address_space_is_refused_before_a_build(tiny_path: Path) -> None:
    command = f"ulimit -v 700000; exec {sys.executable} -m hybrid_deploy build {tiny_path}"
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # every thread maps a stack
    done = subprocess.run(
        ["sh", "-c", f"{command} --target rtx:sm_120"],
        capture_output=True, text=True, check=False, timeout=60, env=os.environ | one_thread,
    )  # fmt: skip
    assert done.returncode == 1
    assert (
        "failed: fp32/encoder: building it takes about 0.8 GB of address space and this shell "
        "allows 0.7 GB; raise that with: ulimit -v unlimited\n"
    ) in done.stderr
    assert "building fp32" not in done.stderr


def test_no_tensorrt_is_one_line(tiny_path: Path) -> None:
    without = "import sys; sys.modules['tensorrt_rtx'] = None\nfrom hybrid_deploy.cli import main\n"
    command = [sys.executable, "-c", without + "main()", "build", str(tiny_path), *TARGET]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "error: tensorrt-rtx is not installed; install it with: pip install 'hybrid-deploy[rtx]'\n",
    )


def test_flipped_bit_is_found_and_reported(tiny_path: Path) -> None:
    cache = EngineCache()
    damaged = list_engines(cache)[0]
    plan = cache.folder / damaged.key / PLAN_FILE
    content = bytearray(plan.read_bytes())
    content[1000] ^= 1
    plan.write_bytes(content)
    assert damaged.record is not None and damaged.record.built_for is not None
    narrow = ("--profile", "batch=1:1:1")
    results = [build(tiny_path, *TARGET), build(tiny_path, *TARGET, *narrow)]
    stderr = "".join(result.stderr for result in results)
    assert f"{plan.parent} was changed after it was built; building it again\n" in stderr


def test_clean_keeps_an_engine_that_another_process_locks() -> None:
    held = list_engines(EngineCache())[0]
    lock = cache_folder("engines") / f"{held.key}.lock"
    command = [sys.executable, "-c", HOLD_LOCK, str(lock)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            assert build_json("--clean", "--older-than", 1) == []
            assert build_json("--clean", "--variant", "fp16") == []
            before = len(list_engines(EngineCache()))
            result = build("--clean")
        finally:
            holder.kill()
    assert f"{before - 1} engines deleted from " in result.stderr
    assert ", 1 kept: another process holds them\n" in result.stderr
    assert [engine.key for engine in list_engines(EngineCache())] == [held.key]
    assert "1 engines deleted" in build("--clean").stderr
    assert not [path for path in cache_folder("engines").iterdir() if path.is_dir()]
