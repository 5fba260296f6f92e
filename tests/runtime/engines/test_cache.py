import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from hybrid_deploy.cache_dir import CACHE_VARIABLE
from hybrid_deploy.errors import BuildError, HybridDeployError, InputError
from hybrid_deploy.runtime.engines.cache import (
    PLAN_FILE,
    RECORD_FILE,
    BuiltPlan,
    EngineCache,
    engine_key,
    read_plan,
)
from hybrid_deploy.runtime.engines.cache_listing import (
    Deletion,
    delete_engines,
    delete_leftovers,
    list_engines,
)
from hybrid_deploy.temporary_names import temporary_name

SHAPED_BY: dict[str, object] = {"graph": "ab", "target": "rtx:sm_86"}
PLAN = bytes(range(256)) * 8


def never() -> BuiltPlan:
    raise AssertionError("the engine is in the cache and was built again")


def new_plan() -> BuiltPlan:
    return BuiltPlan(PLAN, 1.5)


def truncate(entry: Path) -> None:
    (entry / PLAN_FILE).write_bytes(PLAN[:-1])


def flip_a_bit(entry: Path) -> None:
    (entry / PLAN_FILE).write_bytes(PLAN[:100] + bytes([PLAN[100] ^ 1]) + PLAN[101:])


def lose_the_plan(entry: Path) -> None:
    (entry / PLAN_FILE).unlink()


def lose_the_record(entry: Path) -> None:
    (entry / RECORD_FILE).unlink()


def spoil_the_record(entry: Path) -> None:
    (entry / RECORD_FILE).write_bytes(b"\xff{")


def swap_for_another_engine(entry: Path) -> None:
    other = EngineCache(entry.parent).get_or_build({"graph": "other"}, new_plan).path.parent
    for name in (PLAN_FILE, RECORD_FILE):
        (entry / name).write_bytes((other / name).read_bytes())


def test_second_request_is_read_from_disk(tmp_path: Path) -> None:
    first = EngineCache(tmp_path).get_or_build(SHAPED_BY, new_plan)
    second = EngineCache(tmp_path).get_or_build(SHAPED_BY, never)
    assert not first.from_cache
    assert second.from_cache
    assert second.record == first.record
    assert second.record.build_seconds == 1.5
    assert read_plan(second.path) == PLAN


def test_another_description_is_another_engine(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    first = cache.get_or_build(SHAPED_BY, new_plan)
    second = cache.get_or_build(SHAPED_BY | {"target": "rtx:sm_89"}, new_plan)
    assert not second.from_cache
    assert second.path != first.path


def test_key_ignores_the_order_of_entries() -> None:
    assert engine_key(SHAPED_BY) == engine_key(dict(reversed(SHAPED_BY.items())))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_bit,
        lose_the_plan,
        lose_the_record,
        spoil_the_record,
        swap_for_another_engine,
    ],
)
def test_damaged_engine_is_built_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    cache = EngineCache(tmp_path)
    path = cache.get_or_build(SHAPED_BY, new_plan).path
    damage(path.parent)
    with pytest.raises(BuildError, match="cached engine"):
        read_plan(path)
    messages: list[str] = []
    again = cache.get_or_build(SHAPED_BY, new_plan, messages.append)
    assert not again.from_cache
    assert read_plan(again.path) == PLAN
    assert len(messages) == 1
    assert messages[0].endswith("; building it again")


def test_plan_of_another_version_is_not_read(tmp_path: Path) -> None:
    path = EngineCache(tmp_path).get_or_build(SHAPED_BY | {"version": "1.6"}, new_plan).path
    assert read_plan(path, "1.6") == PLAN
    with pytest.raises(BuildError) as caught:
        read_plan(path, "1.7")
    assert str(caught.value) == (
        f"cached engine {path.parent} was made by TensorRT 1.6, 1.7 is installed; build it again"
    )


def test_error_of_a_truncated_plan_names_both_sizes(tmp_path: Path) -> None:
    path = EngineCache(tmp_path).get_or_build(SHAPED_BY, new_plan).path
    truncate(path.parent)
    with pytest.raises(BuildError, match="has 2047 bytes and was built with 2048"):
        read_plan(path)
    (listed,) = list_engines(EngineCache(tmp_path))
    assert listed.damage == "2047 of 2048 bytes"


def test_last_used_is_the_last_read(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    first, second = (cache.get_or_build({"graph": name}, new_plan).path for name in "ab")
    for path in (first, second):
        for file in path.parent.iterdir():
            os.utime(file, (1000, 1000))
    read_plan(first)
    assert [engine.key for engine in list_engines(cache)] == [
        first.parent.name,
        second.parent.name,
    ]
    assert [engine.built_at for engine in list_engines(cache)] == [1000, 1000]


def test_leftovers_of_killed_builds_are_deleted(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    path = cache.get_or_build(SHAPED_BY, new_plan).path
    (tmp_path / temporary_name(path.parent.name, "staging")).mkdir()
    notes = tmp_path / f".{path.parent.name}.mynotes"
    notes.mkdir()
    (notes / "thesis.txt").write_text("mine")
    assert delete_leftovers(cache) == 1
    assert {entry for entry in tmp_path.iterdir() if entry.is_dir()} == {path.parent, notes}
    assert (notes / "thesis.txt").exists()


def test_what_is_no_engine_is_not_deleted(tmp_path: Path) -> None:
    cache, elsewhere = EngineCache(tmp_path / "engines"), tmp_path / "elsewhere"
    entry = cache.get_or_build(SHAPED_BY, new_plan).path.parent
    shutil.copytree(entry, elsewhere)
    folder, link = (cache.folder / (digit * 64) for digit in "ab")
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    link.symlink_to(elsewhere)
    assert [engine.key for engine in list_engines(cache)] == [entry.name]
    deletion = delete_engines(cache, list_engines(cache))
    assert [engine.key for engine in deletion.deleted] == [entry.name]
    assert (folder / "thesis.txt").exists() and link.is_symlink()
    assert sorted(os.listdir(elsewhere)) == [PLAN_FILE, RECORD_FILE]
    assert {path for path in cache.folder.iterdir() if path.is_dir()} == {folder, link}


def test_an_engine_beside_which_something_else_lies_stays(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    entry = cache.get_or_build(SHAPED_BY, new_plan).path.parent
    (entry / "thesis.txt").write_text("mine")
    deletion = delete_engines(cache, list_engines(cache))
    assert deletion == Deletion((), (), ((entry, "it also holds thesis.txt"),))
    assert sorted(os.listdir(entry)) == [PLAN_FILE, RECORD_FILE, "thesis.txt"]
    truncate(entry)
    with pytest.raises(InputError, match=r"also holds thesis\.txt, which is of no engine; move"):
        cache.get_or_build(SHAPED_BY, never)
    assert (entry / "thesis.txt").exists()


def test_failed_build_leaves_nothing_that_could_be_used(tmp_path: Path) -> None:
    def fails() -> BuiltPlan:
        raise BuildError("refused")

    cache = EngineCache(tmp_path)
    with pytest.raises(BuildError, match="refused"):
        cache.get_or_build(SHAPED_BY, fails)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert not cache.get_or_build(SHAPED_BY, new_plan).from_cache


def test_simultaneous_requests_build_once(tmp_path: Path) -> None:
    builds: list[int] = []
    inside = threading.Event()
    release = threading.Event()

    def slow() -> BuiltPlan:
        builds.append(1)
        inside.set()
        assert release.wait(10)
        return new_plan()

    request = threading.Thread(target=lambda: EngineCache(tmp_path).get_or_build(SHAPED_BY, slow))
    other = threading.Thread(target=lambda: EngineCache(tmp_path).get_or_build(SHAPED_BY, slow))
    request.start()
    assert inside.wait(10)
    other.start()
    other.join(0.2)
    assert other.is_alive(), "the second request did not wait for the first"
    release.set()
    request.join(10)
    other.join(10)
    assert builds == [1]


def test_only_the_user_can_open_the_folder(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    cache.get_or_build(SHAPED_BY, new_plan)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


def test_unusable_folder_has_a_remedy(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        EngineCache(file).get_or_build(SHAPED_BY, never)
    assert str(caught.value) == (
        f"{file} cannot hold engines (File exists); name another folder in $HYBRID_DEPLOY_CACHE"
    )


def test_a_full_disk_is_no_wrong_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(HybridDeployError, match="engines: the disk is full; free some") as caught:
        EngineCache(tmp_path / "engines").get_or_build(SHAPED_BY, never)
    assert caught.value.exit_code == 1


def test_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert EngineCache().folder == tmp_path / "engines"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert EngineCache().folder == Path.home() / ".cache" / "hybrid_deploy" / "engines"


def test_nobody_else_enters_the_folder_of_engines(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    before = os.umask(0o002)
    try:
        plan = cache.get_or_build(SHAPED_BY, new_plan)
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert read_plan(plan.path) == PLAN


def open_the_folder(entry: Path) -> None:
    entry.parent.chmod(0o777)


def open_the_plan(entry: Path) -> None:
    entry.parent.chmod(0o755)
    (entry / PLAN_FILE).chmod(0o666)


def link_the_plan(entry: Path) -> None:
    (entry / PLAN_FILE).rename(entry.parent / "planted.plan")
    (entry / PLAN_FILE).symlink_to(entry.parent / "planted.plan")


def link_the_entry(entry: Path) -> None:
    entry.rename(entry.parent / "planted")
    entry.symlink_to(entry.parent / "planted")


@pytest.mark.parametrize("plant", [open_the_folder, open_the_plan, link_the_plan, link_the_entry])
def test_an_engine_that_another_user_could_have_planted_is_refused_before_it_is_read(
    tmp_path: Path, plant: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = EngineCache(tmp_path / "engines").get_or_build(SHAPED_BY, new_plan)
    assert read_plan(plan.path) == PLAN
    plant(plan.path.parent)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(BuildError, match="is not used, because an engine runs native code"):
        read_plan(plan.path)


def test_an_engine_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = EngineCache(tmp_path / "engines").get_or_build(SHAPED_BY, new_plan)
    if os.getuid() == 0:
        os.chown(plan.path, 1234, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 1234)
    with pytest.raises(BuildError, match="it belongs to user"):
        read_plan(plan.path)
