"""IFEval: does a response follow the instructions of its prompt? By the checkers of the package if-verifiable."""

from collections.abc import Callable, Mapping
from typing import Any

from cagsr.errors import InputError

__all__ = ["ifeval"]


def ifeval() -> Callable[[Mapping[str, Any], str], dict[str, float]]:
    """``measure(row, response)``: three metrics in [0, 1], higher better, of a row with IFEval's columns
    ``instruction_id_list`` and ``kwargs``.

    ifeval_strict        1 where the response follows every instruction of its prompt
    ifeval_loose         the same, where that may be so without its first line, its last line or its asterisks
    ifeval_instructions  share of the prompt's instructions that it follows, strictly

    Raises InputError where the package, or data of nltk that it reads, is missing; ``measure`` raises ValueError, with
    the reason, for a row that is none of IFEval's.
    Source: Zhou et al., arXiv 2311.07911. Differs: the paper's accuracy by instruction is a mean over all
    instructions, ``ifeval_instructions`` one over prompts, so that it has an interval over prompts.
    """
    try:
        from if_verifiable.common import evaluate_instructions  # pyright: ignore[reportMissingImports]
        from if_verifiable.ifeval import instructions_registry  # pyright: ignore[reportMissingImports]
        from langdetect import DetectorFactory  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            "metrics.ifeval needs if-verifiable: pip install if-verifiable, or set metrics.ifeval to false"
        ) from error
    known = instructions_registry.INSTRUCTION_DICT
    DetectorFactory.seed = 0  # it draws random numbers to tell a language

    def measure(row: Mapping[str, Any], response: str) -> dict[str, float]:
        try:
            names, options = _instructions(row, known)
            prompt = row["prompt"]
            asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            _, found = evaluate_instructions(response, names, options, asked, known)
        except (AttributeError, LookupError, TypeError) as error:
            if type(error) is not LookupError:  # as nltk raises it; KeyError and IndexError are of the row
                raise ValueError(f"not to be read as a row of IFEval: {error!r}") from error
            raise InputError(
                f"metrics.ifeval: {', '.join(row['instruction_id_list'])} counts by nltk, whose data are missing: "
                "python -m nltk.downloader punkt_tab; or leave out such rows"
            ) from error
        return {
            "ifeval_strict": found.binary_strict,
            "ifeval_loose": found.binary_loose,
            "ifeval_instructions": found.partial_strict,
        }

    return measure


def _instructions(row: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of a row's instructions, and the options of each.

    Raises ValueError, too where an option is missing: the package would draw it at random.
    """
    names, options = row.get("instruction_id_list"), row.get("kwargs")
    if (
        not isinstance(names, list)
        or not names
        or not isinstance(options, list)
        or len(names) != len(options)
    ):
        raise ValueError("no instruction_id_list and kwargs of one length, which rows of IFEval have")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{unknown[0]!r} is no instruction of IFEval")
    given: list[dict[str, Any]] = [option or {} for option in options]
    for name, option in zip(names, given, strict=True):
        if not isinstance(option, dict):
            raise ValueError(f"kwargs of {name!r} are no mapping: {option!r:.60}")
        keys = known[name](name).get_instruction_args_keys()
        if missing := [key for key in keys if option.get(key) in (None, "", [])]:
            raise ValueError(f"kwargs of {name!r} lack {', '.join(missing)}")
    return names, given
