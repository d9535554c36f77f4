"""Run the coordinator: `python -m services.coordinator`."""

from shared.runtime import run

from ._desk import host

if __name__ == "__main__":
    run("coordinator", host)
