"""The command line's entry point: `kyomei`, `python -m kyomei`, and `torchrun … -m kyomei`."""

from kyomei.signals import listening


def main() -> None:
    """Run a verb; a signal ends it with one message and exit code 130."""
    with listening():
        # Signals are heard before anything that takes time is imported.
        from kyomei import cli

        cli.main()


if __name__ == "__main__":
    main()
