"""Advantage estimators, one a file, named in `cagsr.config.registry.ESTIMATORS`.

A sequence estimator maps the reward of whole responses [N] (N = P * K, groups contiguous) to an advantage [N], which
every token of the response then shares: ``(reward_N, group_size) -> advantage_N``. Generalised advantage estimation
(``ppo``) works token by token instead. None divides by a zero spread or depends on where a group sits in the batch, so
groups may be spread over processes in any way.
"""
