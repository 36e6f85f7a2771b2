"""`python -m robustclip` is `robustclip`."""

from robustclip.cli import main

if __name__ == "__main__":
    main()
