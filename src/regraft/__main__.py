"""`python -m regraft` is the command `regraft`."""

from regraft.cli import program

if __name__ == "__main__":
    program()
