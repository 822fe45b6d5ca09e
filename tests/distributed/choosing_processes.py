"""The reward that two processes choose, which would be two if each asked its own base."""

from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console

import tiny
from cagsr.config import Config
from cagsr.data.in_memory import encode_in_memory
from cagsr.distributed.process_group import World
from cagsr.errors import InputError
from cagsr.evaluation import chosen_reward
from cagsr.evaluation.chosen_reward import choose_reward
from cagsr.evaluation.learnt_heads import find_heads


def chosen(accelerator: Accelerator) -> dict[str, Any]:
    """For each process: was its base asked, what was chosen, which heads it found and reads, the error of a failure."""
    policy, world = tiny.policy("llama"), World(accelerator)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(8)
    config = Config.load(None, ["data.task=slots", f"train.seed={world.rank}"])
    config = config.replaced({"sampling": tiny.sampling(candidates=5, temperature=1.0)})
    words = [("alba", "lyon"), ("nova", "porto"), ("mira", "bern")]
    prompts = encode_in_memory([f"artist : {one} ; city : {two}" for one, two in words], policy.tokenizer)
    how = (world, Console(quiet=True))
    heads = mock.patch("cagsr.rewards.heads_found.FOLLOWS", -1.0)
    pieces = mock.patch("cagsr.rewards.heads_found.ENOUGH", 1)
    clear = mock.patch("cagsr.rewards.heads_found.UNDECIDED", 0.0)
    with heads, pieces, clear, mock.patch.object(chosen_reward, "find_heads", wraps=find_heads) as asked:
        found = choose_reward(policy, config, prompts, *how)
    try:
        same = config.replaced({"sampling": tiny.sampling(temperature=0.0), "reward.heads": "learn"})
        choose_reward(policy, same, prompts, *how)
        error = ""
    except InputError as raised:
        error = str(raised)
    return {
        "asked": gather_object([asked.called]),
        "presets": gather_object([found.config.reward.preset]),
        "heads": gather_object([found.heads]),
        "read": gather_object([policy.readable.heads]),
        "errors": gather_object([error]),
    }
