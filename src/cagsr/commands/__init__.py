"""What each command does; `cagsr.cli` only reads arguments and calls these."""
