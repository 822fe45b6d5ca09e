"""``python -m cagsr``, which `accelerate launch -m cagsr` runs on every process."""

from cagsr.cli import main

main()
