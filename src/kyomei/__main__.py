"""`python -m kyomei`, and `torchrun … -m kyomei`."""

from kyomei.cli import main

if __name__ == "__main__":
    main()
