"""`python -m transfusion`, as `torchrun` starts it: the command line."""

from transfusion.cli import main

if __name__ == "__main__":
    main()
