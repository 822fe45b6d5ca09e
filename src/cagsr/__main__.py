"""``python -m cagsr``, which `accelerate launch -m cagsr` runs on every process."""

from cagsr.cli.main import main

if __name__ == "__main__":
    main()
