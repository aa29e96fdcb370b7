"""`python -m sniproxy`, and the console script."""

from sniproxy.cli import main

if __name__ == "__main__":
    main()
