"""Peak memory of a step by however many processes, against what `cagsr plan` says of its config.

Run by itself it is one of those processes: ``python -m benchmarks.memory DIRECTORY FILE CASE``, with the variables that
a launcher gives. Accelerate shards on GPUs only, so that ``tests/sharded.py`` is on its path.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.subjects import Shape, config_of, step_from, whole_step
from cagsr.distributed.fsdp import gathered
from cagsr.io.quiet_libraries import silence_libraries
from cagsr.training.step import Step

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Case:
    """A config, and how it is launched: by ``processes``, each with a shard or with all weights."""

    name: str
    shape: Shape = field(default_factory=Shape)
    settings: tuple[str, ...] = ()
    processes: int = 1
    shards: bool = False
    reshards: bool = True


def measured(case: Case, directory: Path) -> list[dict[str, int]]:
    """Bytes in each process: ``held`` before a step and the ``peak`` in one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    size = str(case.processes)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    shared = {**shared, "ACCELERATE_USE_CPU": "1"} if case.processes > 1 else {}
    files = [directory / f"memory-{rank}.json" for rank in range(case.processes)]
    command = [sys.executable, "-m", "benchmarks.memory", str(directory)]
    running = [
        subprocess.Popen(
            [*command, str(file), json.dumps(asdict(case))],
            env={
                **os.environ,
                **shared,
                **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if shared else {}),
                "OMP_NUM_THREADS": "1",
                "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed is given back at once
                "PYTHONPATH": paths,
            },
        )
        for rank, file in enumerate(files)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise RuntimeError(f"{case.name}: {codes}")
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def main(directory: str, file: str, given: str) -> None:
    silence_libraries()
    torch.set_num_threads(1)
    case = Case(**{**json.loads(given), "shape": Shape(**json.loads(given)["shape"])})
    config = config_of(case.shape, Path(directory), "coverage", *case.settings)
    accelerator = Accelerator(cpu=True, mixed_precision=config.train.mixed_precision)
    if case.shards:
        from sharded import fsdp2

        fsdp2(accelerator, reshard_after_forward=case.reshards)
    step, prompts = step_from(config, accelerator=accelerator)
    mine = step.world.share(prompts)

    def work() -> None:
        with gathered(step.networks, accelerator, config.train.gather_for_rollouts):
            collected = step.collect(mine, 0)
        step.update(collected.batches)

    work()  # moments, and all that is imported or kept on the way
    held = bytes_of(everything(step))
    others = resident("VmRSS") - held
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak until now
    work()
    found = {"held": held, "peak": resident("VmHWM") - others}
    Path(file).write_text(json.dumps(found), encoding="utf-8")
    accelerator.end_training()


def resident(kind: str) -> int:
    """Bytes of this process in main memory, VmRSS now or VmHWM at most."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def everything(step: Step) -> Iterable[Tensor]:
    """All tensors that a step holds between two of them, each as this process has it."""
    networks = step.networks
    yield from (weight for network in networks for weight in (*network.parameters(), *network.buffers()))
    for state in step.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of their storages, each once."""
    local = [getattr(tensor, "_local_tensor", tensor) for tensor in tensors]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in local}.values())


if __name__ == "__main__":
    main(*sys.argv[1:])
