"""`python -m reallm_cli`: the console script, for launchers of modules such as torchrun."""

from reallm_cli.main import run

if __name__ == "__main__":
    run()
