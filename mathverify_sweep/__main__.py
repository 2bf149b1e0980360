"""`python -m mathverify_sweep` is `mvsweep`."""

from mathverify_sweep.cli import main

if __name__ == "__main__":
    main()
