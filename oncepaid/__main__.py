"""`python -m oncepaid` and the `oncepaid` command."""

from oncepaid.cli import main

if __name__ == "__main__":
    main()
