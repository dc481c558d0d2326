"""`python -m jzi` is `jzi`; `accelerate launch -m jzi` runs it on several devices."""

from jzi.cli import main

if __name__ == "__main__":
    main(prog_name="jzi")
