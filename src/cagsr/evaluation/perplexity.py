"""Follow-up perplexity: a frozen model's perplexity of the text that follows prompt and response."""

from collections.abc import Sequence

import numpy as np
import torch

from cagsr.data.chat_template import answered, render
from cagsr.data.make_prompt import text_ids
from cagsr.data.special_tokens import tokenised
from cagsr.errors import InputError
from cagsr.models.policy import Policy
from cagsr.models.token_logprobs import token_logprobs
from cagsr.types import Prompt, Rollout

__all__ = ["FollowUp"]


class FollowUp:
    """A frozen model's negative log-likelihood of the text that follows prompt and response.

    That text, the target, is the user's next turn, or a reference put in its place. A value is the mean over the
    target's tokens of -log p(token | context, tokens of the target before it), in nats at temperature 1, no
    end-of-sequence token counted; 0 or more, lower is better. The context is

    a conversation        what the model's chat template writes for the prompt's messages, the response as the
                          assistant's turn and the target as the user's, up to where the target begins
    causal, plain text    the prompt's tokens, the response's, a newline's (if the tokenizer has one)
    encoder-decoder       the encoder reads the prompt, a newline and the response; the decoder writes the target

    What does not fit into the model is cut: the target to half of the positions at its end, then the context at its
    start. The same target and model for every system, so differences are the response's doing.

    It says something where the model knows conversations. A model that was trained on single turns finds
    a reference likeliest after an empty response: a base of ``keywords`` gives .59 nats then and 1.83 after a
    complete response (60 held-out prompts), so read it beside relevance, never alone.

    Source: arXiv 2502.10482 names a follow-up perplexity and leaves it undefined; this is our definition.
    """

    def __init__(self, policy: Policy, rows_per_pass: int = 32):
        self.policy, self.rows_per_pass = policy, rows_per_pass

    @torch.no_grad()
    def nll(self, prompts: Sequence[Prompt], responses: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        """[N] nats a token of each target. Raises InputError for a target without a token."""
        rows = [self.pieces(*row) for row in zip(prompts, responses, targets, strict=True)]
        values = np.zeros(len(rows))
        order = sorted(range(len(rows)), key=lambda n: len(rows[n][0]) + len(rows[n][1]))
        for start in range(0, len(order), self.rows_per_pass):
            chosen = order[start : start + self.rows_per_pass]
            rollout = self._rollout([rows[n] for n in chosen])
            predictions, mask = self.policy.predict(rollout), rollout.response_mask
            logprobs = torch.zeros(mask.shape)
            place, tokens = predictions.place[mask], rollout.response_ids[mask]
            logprobs[mask.cpu()] = token_logprobs(predictions.logits, place, tokens).cpu()
            means = -logprobs.double().sum(-1) / mask.sum(-1).cpu()
            values[chosen] = means.numpy()
        return values

    def pieces(self, prompt: Prompt, response: str, target: str) -> tuple[list[int], list[int]]:
        """Token ids of the context and of the target, cut to what the model has positions for."""
        if isinstance(prompt.row.get("prompt"), list):
            context, written = self._conversation(prompt, response, target)
        elif self.policy.readable.kind == "causal":
            unknown = self.policy.tokenizer.unk_token_id
            newline = [token for token in self._ids("\n") if token != unknown]
            asked = text_ids(prompt.text, self.policy.tokenizer, goes_on=True)
            context, written = [*asked, *self._ids(response), *newline], self._ids(target)
        else:
            context = text_ids(f"{prompt.text}\n{response}", self.policy.tokenizer)
            written = self._ids(target)
        if not written:
            raise InputError(f"follow-up perplexity: {target!r} has no token to predict. Remove the row.")
        return self._cut(context, written)

    def _conversation(self, prompt: Prompt, response: str, target: str) -> tuple[list[int], list[int]]:
        turns = [*answered(prompt.row["prompt"], response), {"role": "user", "content": target}]
        try:
            text, spans = render(turns, self.policy.tokenizer, **prompt.template)
            _, start, end = spans[-1]
            tokens = tokenised(text[:end], spans, self.policy.tokenizer, add_special_tokens=False)
        except ValueError as error:
            raise InputError(f"follow-up perplexity: {error}") from error
        first = next(n for n, (_, stop) in enumerate(tokens.offsets) if stop > start)
        return list(tokens.ids[:first]), list(tokens.ids[first:])

    def _cut(self, context: list[int], target: list[int]) -> tuple[list[int], list[int]]:
        positions, causal = self.policy.context, self.policy.readable.kind == "causal"
        longest = self.policy.response_limit
        if causal and positions is not None:
            longest = positions // 2
        target = target[:longest]
        if positions is not None:
            context = context[-(positions - len(target) if causal else positions) :]
        return context, target

    def _rollout(self, rows: list[tuple[list[int], list[int]]]) -> Rollout:
        contexts = [
            Prompt(text="", ids=tuple(context), offsets=(), turns=(), index=n)
            for n, (context, _) in enumerate(rows)
        ]
        return self.policy.given_ids(contexts, [target for _, target in rows], [""] * len(rows))

    def _ids(self, text: str) -> list[int]:
        return text_ids(text, self.policy.tokenizer, special=False)
