"""`python -m iiae_cli`: the same program as the console script `iiae`."""

from iiae_cli.cli import main

if __name__ == "__main__":
    main()
