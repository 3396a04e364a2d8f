"""`python -m embedsmith`, which is also what torchrun starts."""

from embedsmith.cli import main

if __name__ == "__main__":
    main()
