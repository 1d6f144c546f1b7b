"""``python -m gradcut``."""

from gradcut.cli import main

if __name__ == "__main__":
    main()
