"""`python -m fganalysis` is the command `fganalysis`."""

from fganalysis.command_line.main import main

if __name__ == "__main__":
    main()
