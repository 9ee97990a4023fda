"""`python -m entrep_cli`, the same as `entrep`."""

from entrep_cli.app import main

if __name__ == "__main__":
    main()
