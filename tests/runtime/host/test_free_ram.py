from pathlib import Path

import pytest

from hybrid_deploy.runtime.host.free_ram import free_ram_bytes

MIB = 1 << 20


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The root folder of a machine with 4 GiB of available RAM."""
    write(tmp_path, {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable:   {4096 * 1024} kB\n"})
    return tmp_path


def test_machine_without_limits(machine: Path) -> None:
    assert free_ram_bytes(machine) == 4096 * MIB


def test_system_without_meminfo(tmp_path: Path) -> None:
    assert free_ram_bytes(tmp_path) is None


def test_this_machine() -> None:
    free_bytes = free_ram_bytes()
    assert free_bytes is not None and free_bytes > MIB


def test_limit_of_a_parent_group(machine: Path) -> None:
    write(
        machine,
        {
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/outer/memory.max": str(1000 * MIB),
            "sys/fs/cgroup/outer/memory.current": str(700 * MIB),
            "sys/fs/cgroup/outer/memory.stat": f"anon 1\ninactive_file {200 * MIB}\n",
            "sys/fs/cgroup/outer/inner/memory.max": "max\n",
            "sys/fs/cgroup/outer/inner/memory.current": "5\n",
        },
    )
    assert free_ram_bytes(machine) == 500 * MIB


def test_first_version_of_control_groups(machine: Path) -> None:
    write(
        machine,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n1:name=systemd:/x\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(300 * MIB),
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(100 * MIB),
        },
    )
    assert free_ram_bytes(machine) == 200 * MIB
