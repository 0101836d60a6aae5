"""`python -m affsup_cli`: the same as `affsup`."""

from affsup_cli.app import main

if __name__ == "__main__":
    main()
