"""Peak memory of training an adapter in shards: bytes in each of four processes, a block gathered at a time.

``python -m benchmarks.memory`` starts them and prints what each found, in shares of the model and its optimizer. They
are ``python -m benchmarks.memory DIRECTORY FILE`` with the variables that a launcher gives. Accelerate shards on GPUs
only, so that ``tests/sharded.py`` is on their path.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.subjects import Shape, config_of, saved, step_from
from cagsr.distributed.fsdp import gathered
from cagsr.io.quiet_libraries import silence_libraries
from cagsr.training.step import Step

ROOT = Path(__file__).parents[1]
PROCESSES = 4
# Deep, and with little to write: what is measured is the weights' share, and not the tokens'.
SHAPE = Shape(
    layers=48, hidden=256, vocabulary=2000, prompts=4, candidates=2, prompt_tokens=6, response_tokens=3
)
SETTINGS = (
    "model.lora={r: 8}",
    "train.gradient_checkpointing=true",
    "train.gather_for_rollouts=false",
)


def measure() -> list[dict[str, float]]:
    """For each process ``held`` between two steps and the ``peak`` in one, 1 being all weights and moments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    size = str(PROCESSES)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    shared |= {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    shared["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    shared["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed is given back at once
    with saved(SHAPE) as directory:
        files = [directory / f"memory-{rank}.json" for rank in range(PROCESSES)]
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.memory", str(directory), str(file)],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank, file in enumerate(files)
        ]
        codes = [process.wait() for process in running]
        if any(codes):
            raise RuntimeError("a process failed")
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def main(directory: str, file: str) -> None:
    from sharded import fsdp2  # pyright: ignore[reportMissingImports] # of the tests

    silence_libraries()
    torch.set_num_threads(1)
    accelerator = fsdp2(Accelerator(cpu=True), reshard_after_forward=True)
    step, prompts = step_from(
        config_of(SHAPE, Path(directory), "coverage", *SETTINGS), accelerator=accelerator
    )
    mine = step.world.share(prompts)

    def work() -> None:
        with gathered(step.networks, accelerator, at_once=False):
            collected = step.collect(mine, 0)
        step.update(collected.batches)

    work()  # moments, and all that is imported or kept on the way
    held = bytes_of(everything(step))
    others = resident("VmRSS") - held
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak until now
    work()
    whole = sum(
        weight.numel() * (weight.element_size() + 8 * weight.requires_grad)
        for weight in step.policy.parameters()
    )
    found = {"held": held / whole, "peak": (resident("VmHWM") - others) / whole}
    Path(file).write_text(json.dumps(found), encoding="utf-8")
    accelerator.end_training()


def resident(kind: str) -> int:
    """Bytes of this process in main memory, VmRSS now or VmHWM at most."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def everything(step: Step) -> Iterable[Tensor]:
    """All tensors that a step holds between two of them, each as this process has it."""
    yield from (*step.policy.parameters(), *step.policy.buffers())
    for state in step.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of their storages, each once."""
    local = [getattr(tensor, "_local_tensor", tensor) for tensor in tensors]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in local}.values())


if __name__ == "__main__":
    if sys.argv[1:]:
        main(*sys.argv[1:])
    else:
        print(json.dumps(measure()))
