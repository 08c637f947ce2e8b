"""``python -m executor``: what torchrun starts."""

from executor.cli import main

if __name__ == "__main__":
    main()
