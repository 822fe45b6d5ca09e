"""What reading attention costs: time and memory against the same SDPA pass, and against eager attention."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.protocol import Bound, Taken, cpu, peak_bytes, ratios, spread, take_turns
from benchmarks.record import Part, Plan, Table
from cagsr.attention import ATTENTION, Readable, capture, inspect

LAYERS = 12
MIB = 2**20
ABOUT = """A forward pass of a Llama shape (12 layers, hidden 512, 8 heads, vocabulary 8000), one row, whose prompt is
padded to S on the left with a quarter of it empty.

- **sdpa**: the pass alone, by transformers' own SDPA attention.
- **capture, n layers**: the same pass while the attention of n layers is read.
- **eager**: the pass with `output_attentions=True`, from which the same A is taken.

A itself is 4NTS bytes. Each layer's own weights, which eager attention keeps, would be 4NH(S+T)² bytes."""


@dataclass(frozen=True)
class Size:
    prompt: int
    response: int

    def __str__(self) -> str:
        return f"S {self.prompt}, T {self.response}"


SIZES = [Size(256, 256), Size(512, 256), Size(256, 512), Size(1024, 1024)]
READ = {1: (11,), 4: (8, 9, 10, 11), 12: tuple(range(12))}
PROMISED = Size(1024, 1024)
"""The size of the bounds. It is long, so only the layers of the bounds are read there."""


def model(size: Size) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=size.prompt + size.response,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()


def batch(size: Size) -> dict[str, Tensor]:
    """One prompt of three quarters of S, padded on the left, and a response of T tokens."""
    width = size.prompt + size.response
    mask = (torch.arange(width) >= size.prompt // 4).long()[None]
    return {
        "input_ids": torch.randint(3, 8000, (1, width)),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
    }


def ways(net: PreTrainedModel, size: Size, inputs: dict[str, Tensor]) -> dict[str, Callable[[], object]]:
    """The passes that are compared. Switching the implementation only sets a field of the config."""
    rows = slice(size.prompt - 1, size.prompt - 1 + size.response)
    columns = slice(0, size.prompt)

    def sdpa() -> object:
        net.set_attn_implementation("sdpa")
        return net(**inputs, use_cache=False).logits

    def reading(readable: Readable) -> Callable[[], object]:
        def read() -> object:
            net.set_attn_implementation(ATTENTION)
            with capture(readable, rows=rows, columns=columns) as found:
                logits = net(**inputs, use_cache=False).logits
            return logits, found.attention

        return read

    def eager() -> object:
        net.set_attn_implementation("eager")
        output = net(**inputs, use_cache=False, output_attentions=True)
        chosen = [output.attentions[layer][:, :, rows, columns].mean(1) for layer in READ[4]]
        return output.logits, torch.stack(chosen).mean(0)

    numbers = [4] if size == PROMISED else list(READ)
    captures = {f"capture, {n} layers": reading(inspect(net, layers=list(READ[n]))) for n in numbers}
    return {"sdpa": sdpa, **captures, "eager": eager}


@torch.no_grad()
def measure(plan: Plan) -> Part:
    rows: list[list[str]] = []
    bounds: list[Bound] = []
    turns: dict[str, list[Taken]] = {}
    for size in [Size(64, 64), PROMISED] if plan.quick else SIZES:
        passes = ways(model(size), size, batch(size))
        taken = take_turns(passes, plan.rounds)
        peaks = {name: peak_bytes(work) for name, work in passes.items()}
        turns |= {f"{size}: {name}": each for name, each in taken.items()}
        over = {name: ratios(cpu(each), cpu(taken["sdpa"])) for name, each in taken.items()}
        extra = {name: (peak - peaks["sdpa"]) / MIB for name, peak in peaks.items()}
        for name in passes:
            seconds = spread(cpu(taken[name])).text(3)
            rows.append([str(size), name, seconds, over[name].text(3), f"{extra[name]:.1f} MiB"])
        if size == PROMISED:
            what = f"capture, 4 of 12 layers, {size}"
            allowed = 1.5 * 4 * size.response * size.prompt / MIB + 32
            bounds = [
                Bound(f"{what}: time of the SDPA pass", "most", 1.03, over["capture, 4 layers"], "x"),
                Bound(f"{what}: extra memory", "most", allowed, spread([extra["capture, 4 layers"]]), " MiB"),
            ]
    columns = ["Size", "Way", "Seconds", "Times SDPA", "Memory beyond SDPA"]
    return Part("Reading attention", ABOUT, [Table("", columns, rows)], bounds, turns)
