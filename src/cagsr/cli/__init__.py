"""The command line `cagsr`: the commands of `main` and the options that they share."""
