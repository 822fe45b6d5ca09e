"""The attention reward without reinforcement learning: it only ranks what the base wrote."""

from cagsr.data.preferences import Pair
from cagsr.experiments.systems.bench import Bench
from cagsr.experiments.systems.recipe import Choose, Imitate, NotForThisDataError, Prefer, Recipe

__all__ = ["best_of_k", "dpo", "s3ft", "sft_best"]


def best_of_k(bench: Bench) -> Recipe:
    """No training: the best of K samples by the attention reward, each time it is asked."""
    return Choose()


def sft_best(bench: Bench) -> Recipe:
    """Supervised learning of the best of the base's K samples (rejection sampling)."""
    return Imitate(bench.prompts, bench.best(), batch_size=bench.prompts_per_step)


def dpo(bench: Bench) -> Recipe:
    """DPO of the best against the worst of the base's K samples. Source: arXiv 2305.18290."""
    pairs = [
        Pair(prompt, best, worst)
        for prompt, best, worst in zip(bench.prompts, bench.best(), bench.worst(), strict=True)
        if best != worst
    ]
    if not pairs:
        raise NotForThisDataError("no prompt has samples that the reward tells apart")
    return Prefer(pairs, batch_size=bench.prompts_per_step)


def s3ft(bench: Bench) -> Recipe:
    """Supervised learning of the base's own right answer where it has one, else of the reference.

    Source: selective self-to-supervised fine-tuning, arXiv 2502.08130.
    Differs: the checker tells what is right; the paper asks a judge, and paraphrases the references.
    """
    references = bench.references
    if bench.checker is None:
        raise NotForThisDataError("no checker that tells a right answer")
    right = bench.checker.quality
    targets = [
        next((text for text in texts if right(prompt.row, text) == 1.0), reference)
        for prompt, texts, reference in zip(bench.prompts, bench.samples.responses, references, strict=True)
    ]
    verdicts = sum(map(len, bench.samples.responses))
    labels = bench.distinct_prompts + verdicts
    return Imitate(bench.prompts, targets, batch_size=bench.prompts_per_step, labels=labels)
